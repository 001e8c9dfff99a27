"""The fleet of the run: which hosts and vCenters there are, what is true of them, and the files that name them."""
import json
import random
import socket
import threading

from .processes import free_port, is_free
from .received import series
from .ssh_hosts import LOCKING_PAM_SERVICE, SshHost
from .vcenters import Vcenter

REGION = "cc.eu-de-1.cloud.sap"


class Fleet:
    def __init__(self):
        self.net = free_network()
        ip = lambda last: f"{self.net}.{last}"
        a, b = "eu-de-1a", "eu-de-1b"
        self.hosts = [
            SshHost("node001-bb091", a, ip(11)),
            SshHost("node002-bb091", a, ip(12), stopped=("ntpd", "nsx-proxy")),
            SshHost("node003-bb091", a, ip(13), noise={"hostd": "Reading the configuration of the management agent"}),
            SshHost("node004-bb091", a, ip(14), stopped=("vvold",)),
            SshHost("node005-bb092", b, ip(15), slow={"vvold": 2}, noise={"nsx-opsagent": "opsAgent: log level is INFO"}),
            SshHost("node006-bb092", b, ip(16), key_only=True),
            SshHost("node007-bb092", b, ip(17), listening=False),
        ]
        # In no inventory but that of the lockout's section.
        self.locking = SshHost("node008-bb093", b, ip(18), pam_service=LOCKING_PAM_SERVICE)
        by_name = {host.name: host for host in self.hosts}
        self.healthy, self.stopped, self.slow, self.key_only, self.dead = (
            by_name[name] for name in ("node001-bb091", "node002-bb091", "node005-bb092", "node006-bb092", "node007-bb092"))
        self.by_password = [h for h in self.hosts if h.listening and not h.key_only]
        self.reachable = [h for h in self.hosts if h.listening]
        self.visited = [h for h in self.hosts if not h.key_only]       # by the agent of the long run, which has a password

        status = lambda names, words: dict(zip((by_name[n].address for n in names), words))
        self.vcenters = [
            Vcenter(f"vc-a-0.{REGION}", a, ip(2), free_port(), clusters=2,
                    hosts=status(("node001-bb091", "node002-bb091", "node003-bb091", "node004-bb091"),
                                 ("green", "yellow", "red", "gray")),
                    standalone={f"spare001-bb091.{REGION}": "green"}),       # only the vCenter knows it
            Vcenter(f"vc-b-0.{REGION}", b, ip(3), free_port(), clusters=1,
                    hosts=status(("node005-bb092", "node006-bb092"), ("green", "red")),
                    standalone=status(("node007-bb092",), ("yellow",))),
        ]
        self.ssh_port = free_port([h.ip for h in [*self.hosts, self.locking]] + [ip(250)])
        self.out_of_band = Untouchable(ip(250), self.ssh_port)

    def names(self):
        return {**{h.address: h.ip for h in [*self.hosts, self.locking]}, **{v.name: v.ip for v in self.vcenters}}

    def vcenter_of(self, site):
        return next(v for v in self.vcenters if v.site == site)

    def atlas(self, hosts=None):
        """The inventory file: full and reduced rows, one host twice, and the rows of other jobs."""
        hosts = self.visited if hosts is None else hosts
        rows = [
            {"targets": [f"{self.net}.251"], "labels": {"job": "snmp-ntp", "module": "ntp", "metrics_label": "snmp",
             "server_name": "ntp-1", "site": "eu-de-1a", "status": "Active"}},
            {"targets": [f"{self.net}.252"], "labels": {"job": "vrops", "metrics_label": "vrops",
             "server_name": f"vrops-a-0.{REGION}", "state": "Active"}},
            {"targets": [], "labels": {}},
        ]
        full = {"module": "vmware-esxi", "metrics_label": "vmware-esxi", "manufacturer": "Interop", "model": "X-1",
                "serial": "0000", "server_id": "1234", "role": "server", "cluster": "bb091"}
        for index, host in enumerate(hosts):
            labels = {"job": "vmware-esxi", "name": host.name, "server_name": host.name, "status": "Active", "site": host.site}
            if index % 2:
                rows.append({"labels": labels})                              # as the Python exporter documents it
            else:                                                            # targets[0] is the out-of-band controller
                rows.append({"targets": [self.out_of_band.ip], "labels": {**labels, **full}})
        if hosts:
            rows.append(rows[-1])                                            # two management interfaces, one host
        for index, vc in enumerate(self.vcenters):
            if index % 2:
                rows.append({"labels": {"job": "vcenter", "server_name": vc.name}})
            else:
                rows.append({"targets": [vc.ip], "labels": {"job": "vcenter", "metrics_label": "vcenter",
                             "server_name": vc.name, "server_id": "77", "role": "vcenter", "state": "Active"}})
        random.Random(1).shuffle(rows)
        return json.dumps(rows, indent=1)

    def truth(self):
        """OTel name → series → value, for everything that the suite compares."""
        services, problems, ssh_up, ssh_failure = {}, {}, {}, {}
        for host in self.visited:
            at = {"site": host.site, "hostsystem": host.address}
            ssh_up[series("esxi.host.ssh.up", at)] = int(host.listening)
            if not host.listening:
                ssh_failure[series("esxi.host.ssh.failure", {**at, "reason": "connect_refused"})] = 1
                continue
            for service, running in host.truth().items():
                services[series("esxi.critical_service.status", {**at, "service": service})] = running
            problems[series("esxi.critical_service.problem", {**at, "service": "nsxa", "reason": "not_installed"})] = 1
        overall, vcenter_up, connection = {}, {}, {}
        addresses = {host.address for host in self.visited}
        for vc in self.vcenters:
            of = {"vcenter": vc.name, "site": vc.site}
            vcenter_up[series("esxi.vcenter.up", of)] = 1
            for name, value in vc.truth().items():
                at = {**of, "hostsystem": name}
                overall[series("esxi.overall_status", at)] = value
                if name in addresses:
                    at["address"] = name        # joins what the vCenter says with what SSH says
                for state in ("connected", "disconnected", "notResponding"):
                    connection[series("esxi.host.connection_state", {**at, "state": state})] = int(state == "connected")
        return {"esxi.critical_service.status": services, "esxi.overall_status": overall, "esxi.host.ssh.up": ssh_up,
                "esxi.vcenter.up": vcenter_up, "esxi.host.connection_state": connection,
                "esxi.critical_service.problem": problems, "esxi.host.ssh.failure": ssh_failure}


def free_network():
    """A 127.x.y on which nobody holds port 443; the rows of the inventory have no place for another port."""
    for _ in range(20):
        net = f"127.{random.randint(16, 250)}.{random.randint(1, 250)}"
        if all(is_free(f"{net}.{last}", 443) for last in (2, 3)):
            return net
    raise OSError("port 443 is taken on all of loopback (something listens on 0.0.0.0:443)")


class Untouchable:
    """An out-of-band controller: an address that nobody is to connect to. Counts who does."""

    def __init__(self, ip, port):
        self.ip = ip
        self.touched = 0
        self.listener = socket.create_server((ip, port))
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self):
        while True:
            connection, _ = self.listener.accept()
            self.touched += 1
            connection.close()
