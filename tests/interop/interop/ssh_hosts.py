"""OpenSSH made to look like ESXi 8: its algorithms, its way of asking for the password, its shell, its scripts."""
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from . import private_system
from .processes import CACHE, LOGS, RUN

PAM_SERVICE = "interop-sshd"        # sshd takes the name of its PAM service from the name it is started by
LOCKING_PAM_SERVICE = "interop-faillock"      # locks an account as ESXi does
SERVICES = ("hostd", "nsx-opsagent", "nsx-proxy", "nsxa", "ntpd", "vpxa", "vvold")
NOT_INSTALLED = ("nsxa",)
APPLETS = ("sh ash [ awk basename cat chmod cp cut date dirname echo egrep env expr false fgrep find grep head hostname id "
           "kill ln ls mkdir mkfifo mktemp mv nohup od printf ps pwd readlink rm rmdir sed seq setsid sleep sort stat tail "
           "tee test timeout touch tr true uname uniq usleep wc which xargs").split()

SSHD_CONFIG = """
ListenAddress {address}:{port}
HostKey {home}/host_rsa
HostKey {home}/host_ecdsa
PidFile none
KexAlgorithms ecdh-sha2-nistp256,ecdh-sha2-nistp384,ecdh-sha2-nistp521,diffie-hellman-group-exchange-sha256,diffie-hellman-group16-sha512,diffie-hellman-group18-sha512,diffie-hellman-group14-sha256
Ciphers aes256-gcm@openssh.com,aes128-gcm@openssh.com,aes256-ctr,aes192-ctr,aes128-ctr
MACs hmac-sha2-256,hmac-sha2-512
HostKeyAlgorithms rsa-sha2-256,rsa-sha2-512,ecdsa-sha2-nistp256
PubkeyAcceptedAlgorithms rsa-sha2-256,rsa-sha2-512,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384
PasswordAuthentication no
KbdInteractiveAuthentication {keyboard}
PubkeyAuthentication yes
AuthorizedKeysFile {root}/etc/ssh/keys-%u/authorized_keys
UsePAM yes
MaxSessions 1
MaxAuthTries 6
MaxStartups 10:30:100
ClientAliveInterval 200
ClientAliveCountMax 3
RekeyLimit 1G 1H
AllowTcpForwarding no
PrintMotd no
UseDNS no
Banner {root}/etc/issue
ChrootDirectory {root}
LogLevel VERBOSE
"""

INIT_SCRIPT = """#!/bin/sh
# {name}: answers what stands in /etc/interop/{name}
STATE=running WAIT=0 NOISE=
. /etc/interop/{name}
if [ "$1" != status ]; then
   echo "Usage: {name} {{start|stop|status|restart}}"
   exit 1
fi
[ "$WAIT" = 0 ] || sleep "$WAIT"
[ -z "$NOISE" ] || echo "$NOISE"
if [ "$STATE" = running ]; then
   echo "{says} is running{stop}"
   exit 0
fi
echo "{says} is not running{stop}"
exit 3
"""


@dataclass
class SshHost:
    name: str                           # node001-bb091
    site: str                           # eu-de-1a
    ip: str
    stopped: tuple = ()                 # services that do not run
    slow: dict = field(default_factory=dict)      # service → seconds its script takes
    noise: dict = field(default_factory=dict)     # service → a line before the status line
    key_only: bool = False
    listening: bool = True
    pam_service: str = PAM_SERVICE
    root: Path = None

    @property
    def address(self):
        return f"{self.name}.cc.{self.site[:-1]}.cloud.sap"

    def set(self, service, running):
        """The truth about a service, from now on."""
        if service in self.stopped:
            self.stopped = tuple(s for s in self.stopped if s != service)
        if not running:
            self.stopped += (service,)
        self._tell(service)

    def _tell(self, service):
        state = "stopped" if service in self.stopped else "running"
        told = self.root / "etc/interop" / service
        fresh = told.with_suffix(".new")
        fresh.write_text(f"STATE={state}\nWAIT={self.slow.get(service, 0)}\nNOISE='{self.noise.get(service, '')}'\n")
        fresh.replace(told)             # in one step: a script may be reading it

    def truth(self):
        """service → 1 or 0, under the names that the Python exporter's dashboards know."""
        return {"opsAgent" if s == "nsx-opsagent" else s: int(s not in NOT_INSTALLED and s not in self.stopped)
                for s in SERVICES}

    def build_root(self, root, authorized_key):
        self.root = root
        for folder in ("bin", "dev", "etc/init.d", "etc/interop", f"etc/ssh/keys-{private_system.ACCOUNT}", "tmp", "var/log"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "tmp").chmod(0o1777)
        busybox = root / "bin/busybox"
        busybox.write_bytes((CACHE / "debian/bin/busybox").read_bytes())
        busybox.chmod(0o755)
        for applet in APPLETS:
            os.link(busybox, root / "bin" / applet)
        for device, minor in (("null", 3), ("zero", 5), ("urandom", 9)):
            os.mknod(root / "dev" / device, 0o020666, os.makedev(1, minor))
            (root / "dev" / device).chmod(0o666)
        (root / "etc/issue").write_text("This host belongs to the interop suite.\n")
        if self.key_only:
            (root / f"etc/ssh/keys-{private_system.ACCOUNT}/authorized_keys").write_text(authorized_key)
        for service in SERVICES:
            if service in NOT_INSTALLED:
                continue
            script = root / "etc/init.d" / service
            script.write_text(INIT_SCRIPT.format(
                name=service, says="opsAgent" if service == "nsx-opsagent" else service,
                stop="." if service in ("hostd", "vvold") else ""))
            script.chmod(0o755)
            self._tell(service)

    def log(self):
        return (LOGS / f"sshd-{self.name}.log").read_text(errors="replace")

    def logins(self):
        return len(re.findall(r"Accepted (?:keyboard-interactive|publickey)", self.log()))

    def rejections(self):
        """How often a password was tried and refused."""
        return len(re.findall(r"Failed (?:keyboard-interactive|password)", self.log()))


def make_user_key():
    """RSA, since ESXi refuses ed25519 user keys in FIPS mode. Returns the private key's file and the public line."""
    key = RUN / "agent" / "id_rsa"
    key.parent.mkdir(exist_ok=True)
    keygen("rsa", key, "-b", "3072")
    return key, key.with_suffix(".pub").read_text()


def keygen(kind, path, *more):
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "interop", "-f", path, *more], check=True)


def start(processes, hosts, roots, port, authorized_key):
    for service in {host.pam_service for host in hosts}:
        (RUN / service).symlink_to(CACHE / "debian/usr/sbin/sshd")
    started = []
    for host in hosts:
        host.build_root(roots / host.name, authorized_key)
        home = RUN / "sshd" / host.name
        home.mkdir(parents=True)
        keygen("rsa", home / "host_rsa", "-b", "2048")
        keygen("ecdsa", home / "host_ecdsa", "-b", "256")
        (home / "sshd_config").write_text(SSHD_CONFIG.format(
            address=host.ip, port=port, home=home, root=host.root, keyboard="no" if host.key_only else "yes"))
        if host.listening:
            started.append((host, processes.start(f"sshd-{host.name}", [RUN / host.pam_service, "-D", "-e", "-f", home / "sshd_config"])))
    for host, process in started:
        processes.started(process, [(host.ip, port)])
