"""Two vCenters: govmomi's simulator behind certificates of a CA that is made for the run."""
import json
import os
import subprocess
import urllib.parse
from dataclasses import dataclass

from .processes import CACHE, RUN, get

STATUS = {"green": 2, "yellow": 1, "red": 0, "gray": -1}


@dataclass
class Vcenter:
    name: str                   # vc-a-0.cc.eu-de-1.cloud.sap
    site: str
    ip: str
    control: int                # port of the control API
    clusters: int
    hosts: dict                 # name → overallStatus
    standalone: dict

    def state(self):
        return json.loads(get(f"http://127.0.0.1:{self.control}/state"))

    def set(self, host, **settings):
        query = urllib.parse.urlencode({"name": host, **settings})
        if get(f"http://127.0.0.1:{self.control}/host?{query}", data=b"") is None:
            raise RuntimeError(f"{self.name}: could not set {settings} of {host}")
        status = settings.get("overallStatus")
        if status:
            (self.hosts if host in self.hosts else self.standalone)[host] = status

    def truth(self):
        return {name: STATUS[status] for name, status in {**self.hosts, **self.standalone}.items()}


def openssl(*args):
    subprocess.run(["openssl", *args], check=True, capture_output=True, cwd=RUN / "tls")


def make_certificates(names):
    """A CA and one certificate per name, in RUN/tls. Returns the CA's file."""
    (RUN / "tls").mkdir()
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "30", "-subj", "/CN=interop CA")
    for name in names:
        (RUN / "tls" / f"{name}.ext").write_text(f"subjectAltName=DNS:{name}\nextendedKeyUsage=serverAuth\n")
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "30", "-extfile", f"{name}.ext", "-out", f"{name}.pem")
    return RUN / "tls" / "ca.pem"


def start(processes, vcenters, user, password):
    begun = [(vc, begin(processes, vc, user, password)) for vc in vcenters]
    for vc, process in begun:
        prepare(processes, vc, process)


def begin(processes, vc, user, password):
    env = {**os.environ, "VCSIM_PASSWORD": password, "VCSIM_SECURE_COOKIES": "true"}
    return processes.start(f"vcsim-{vc.name}", [
        CACHE / "bin/vcsim", "-listen", f"{vc.ip}:443", "-control", f"127.0.0.1:{vc.control}",
        "-cert", RUN / "tls" / f"{vc.name}.pem", "-key", RUN / "tls" / f"{vc.name}.key",
        "-user", user, "-clusters", vc.clusters,
        "-hosts", ",".join(vc.hosts), "-standalone", ",".join(vc.standalone)], env=env)


def prepare(processes, vc, process):
    """Waits until it listens, and makes its hosts what they were."""
    processes.started(process, [(vc.ip, 443), ("127.0.0.1", vc.control)])
    for host, status in {**vc.hosts, **vc.standalone}.items():
        vc.set(host, overallStatus=status)
