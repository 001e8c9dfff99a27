"""vCenters alone, polled every half minute, their certificates pinned: what changes is known by what they tell."""
import hashlib
import json
import ssl
import time

from .agent import Agent
from .processes import RUN
from .received import scraped, series

INTERVAL = 30
ARRIVAL = 2             # seconds from the vCenter to the Collector's file; usually a fifth of one

CONFIG = """
prometheus: {{listen: "127.0.0.1:{port}"}}
collectors:
  overall_state_collector: {{enabled: true, interval: %ds}}
state_dir: {home}/state
vcenter: {{thumbprints: {{%s}}}}
otlp: {{endpoint: {otlp}, interval: 2s}}
"""


def thumbprint(name):
    pem = (RUN / "tls" / f"{name}.pem").read_text()
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def tell(setup, table, binary, within):
    table.about(f"hints: vCenters polled every {INTERVAL} s, certificates pinned")
    fleet = setup.fleet
    pins = lambda made_up=None: ", ".join(f"{vc.name}: {made_up or thumbprint(vc.name)}" for vc in fleet.vcenters)
    wrong = Agent("wrong-pin", setup, binary, config=CONFIG % (INTERVAL, pins("ab" * 32)))
    code, out = wrong.call("check", "--connect", "--format", "json")
    found = json.loads(out)["vcenters"]
    table.check("check --connect with a wrong pin: exit code, reason", (1, {"tls"}), (code, {vc["reason"] for vc in found}))

    agent = Agent("hints", setup, binary, config=CONFIG % (INTERVAL, pins()))
    code, out = agent.call("check", "--connect", "--format", "json")
    found = json.loads(out)["vcenters"]
    table.check("check --connect with the right one: exit code", 0, code)
    facts = lambda name: {str(vc["facts"].get(name)) for vc in found}
    table.check("… how the certificates are trusted", {"pinned"}, facts("tls_trust"))
    table.check("… what hints there are", {"changes of hosts and alarms"}, facts("hints"))
    table.check("… privileges", {"System.View, System.Read"}, facts("privileges"))
    for vc in fleet.vcenters:
        table.check(f"… and it has logged out of {vc.name}: sessions left", 0, vc.state()["sessions"])

    process = agent.start()
    url = setup.telemetry.url("agent") + "/metrics"
    told = lambda: sum(value for (name, labels), value in (scraped(url) or {}).items()
                       if name == "esxi_agent_vcenter_hints_total" and dict(labels)["outcome"] == "read")
    ready = within(30, "it listens", lambda: told() >= len(fleet.vcenters))
    table.check("it listens at both vCenters", True, ready)
    for vc in fleet.vcenters:
        host = next(iter(vc.hosts))
        before = vc.hosts[host]
        key = series("esxi.overall_status", {"vcenter": vc.name, "site": vc.site, "hostsystem": host})
        for status, value in (("gray", -1), ("red", 0), (before, vc.truth()[host])):
            if within(0, "the same", lambda: setup.file.latest(key[0]).get(key) == value):
                continue
            time.sleep(1)           # what changes within a second is read together
            vc.set(host, overallStatus=status)
            began = time.monotonic()
            arrived = within(INTERVAL + 5, "it arrives", lambda: setup.file.latest(key[0]).get(key) == value)
            took = time.monotonic() - began
            table.check(f"{vc.name}: a host turns {status}: seconds until it is in the Collector's file", f"at most {ARRIVAL}",
                        f"{took:.1f}" if arrived else "never", ok=arrived and took <= ARRIVAL)
        table.check(f"{vc.name}: sessions meanwhile", 1, vc.state()["sessions"])
    code, took = setup.processes.end(process, 15)
    table.check("SIGTERM: exit code", 0, code)
    for vc in fleet.vcenters:
        table.check(f"{vc.name}: sessions left", 0, vc.state()["sessions"])
