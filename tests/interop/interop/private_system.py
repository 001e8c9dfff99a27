"""What the run sees of the system and nobody else does: names, the account, the PAM service.

`run` has put us into a mount namespace of our own, so nothing here outlasts the run or is seen outside of it.
"""
import subprocess
from pathlib import Path

from .processes import RUN

ACCOUNT = "esxi-interop"
UID = 64123


def password_hash(password):
    return subprocess.run(["openssl", "passwd", "-6", "-stdin"], input=password.encode(),
                          check=True, capture_output=True).stdout.decode().strip()


def cover(target, text, mode=0o644):
    """Puts a file of ours over one of the system's."""
    ours = RUN / "etc" / Path(target).name
    ours.parent.mkdir(exist_ok=True)
    ours.write_text(text)
    ours.chmod(mode)
    subprocess.run(["mount", "--bind", ours, target], check=True)


def set_up(hosts, password, pam_service):
    """`hosts`: name → loopback address."""
    passwd, group, shadow = (Path(f"/etc/{name}").read_text() for name in ("passwd", "group", "shadow"))
    if not any(line.startswith("sshd:") for line in passwd.splitlines()):
        passwd += "sshd:x:64122:65534::/run/sshd:/usr/sbin/nologin\n"      # sshd's own, for its unprivileged part
    cover("/etc/passwd", passwd + f"{ACCOUNT}:x:{UID}:{UID}::/:/bin/sh\n")
    cover("/etc/group", group + f"{ACCOUNT}:x:{UID}:\n")
    cover("/etc/shadow", shadow + f"{ACCOUNT}:{password_hash(password)}:19000:0:99999:7:::\n", 0o600)
    cover("/etc/hosts", "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in hosts.items()))

    pam = RUN / "etc" / "pam.d"
    pam.mkdir(exist_ok=True)
    (pam / pam_service).write_text(
        "auth     required pam_unix.so nodelay\naccount  required pam_unix.so\nsession  required pam_permit.so\n")
    (pam / "other").write_text("auth required pam_deny.so\naccount required pam_deny.so\n")
    subprocess.run(["mount", "--bind", pam, "/etc/pam.d"], check=True)

    # sshd accepts a ChrootDirectory only where nobody but root could have changed a folder above it.
    roots = RUN / "hosts"
    roots.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", roots, "/srv"], check=True)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    return Path("/srv")
