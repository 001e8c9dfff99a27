"""What the run sees of the system and nobody else does: names, the account, the PAM service.

`run` has put us into a mount namespace of our own, so nothing here outlasts the run or is seen outside of it.
"""
import subprocess
from pathlib import Path

from .processes import RUN

ACCOUNT = "esxi-interop"
NAIVE_ACCOUNT = "esxi-naive"        # for a client that does not know when to stop
UID = 64123
LOCK_AFTER, UNLOCK_AFTER = 3, 900   # as on a hardened ESXi: failures, seconds


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


def set_up(hosts, password, pam_service, locking_pam_service):
    """`hosts`: name → loopback address."""
    passwd, group, shadow = (Path(f"/etc/{name}").read_text() for name in ("passwd", "group", "shadow"))
    if not any(line.startswith("sshd:") for line in passwd.splitlines()):
        passwd += "sshd:x:64122:65534::/run/sshd:/usr/sbin/nologin\n"      # sshd's own, for its unprivileged part
    accounts = {ACCOUNT: UID, NAIVE_ACCOUNT: UID + 1}
    secret = password_hash(password)
    cover("/etc/passwd", passwd + "".join(f"{name}:x:{uid}:{uid}::/:/bin/sh\n" for name, uid in accounts.items()))
    cover("/etc/group", group + "".join(f"{name}:x:{uid}:\n" for name, uid in accounts.items()))
    cover("/etc/shadow", shadow + "".join(f"{name}:{secret}:19000:0:99999:7:::\n" for name in accounts), 0o600)
    cover("/etc/hosts", "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in hosts.items()))

    pam = RUN / "etc" / "pam.d"
    pam.mkdir(exist_ok=True)
    (pam / pam_service).write_text(
        "auth     required pam_unix.so nodelay\naccount  required pam_unix.so\nsession  required pam_permit.so\n")
    tally = RUN / "faillock"
    tally.mkdir(mode=0o755, exist_ok=True)
    faillock = f"dir={tally} deny={LOCK_AFTER} unlock_time={UNLOCK_AFTER} fail_interval={UNLOCK_AFTER}"
    (pam / locking_pam_service).write_text(
        f"auth     required pam_faillock.so preauth {faillock}\n"
        "auth     sufficient pam_unix.so nodelay\n"
        f"auth     [default=die] pam_faillock.so authfail {faillock}\n"
        f"account  required pam_faillock.so {faillock}\n"
        "account  required pam_unix.so\nsession  required pam_permit.so\n")
    (pam / "other").write_text("auth required pam_deny.so\naccount required pam_deny.so\n")
    subprocess.run(["mount", "--bind", pam, "/etc/pam.d"], check=True)

    # sshd accepts a ChrootDirectory only where nobody but root could have changed a folder above it.
    roots = RUN / "hosts"
    roots.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", roots, "/srv"], check=True)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    return Path("/srv")
