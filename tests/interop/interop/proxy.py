"""vCenters behind a proxy that wants a password: tinyproxy, which only connects to the vCenters' port."""
import json

from .agent import Agent
from .processes import CACHE, RUN, free_port
from .received import scraped
from .story import within

INTERVAL = 2            # seconds between polls
PASSWORD = "p-40._x"    # tinyproxy knows no other characters

CONFIG = """
prometheus: {{listen: "127.0.0.1:{port}"}}
collectors:
  overall_state_collector: {{enabled: true, interval: %ds}}
state_dir: {home}/state
vcenter:
  ca_file: {ca}
  proxy: {{url: "http://127.0.0.1:%d", basic_auth: {{username: agent, password_file: %s}}}}
otlp: {{endpoint: {otlp}, interval: 2s}}
"""

TINYPROXY = """
Port %d
Listen 127.0.0.1
Timeout 600
Allow 127.0.0.0/8
BasicAuth agent %s
ConnectPort 443
LogFile "%s"
LogLevel Connect
"""


def begin(setup, port):
    configuration, log = RUN / "tinyproxy.conf", RUN / "tinyproxy.log"
    configuration.write_text(TINYPROXY % (port, PASSWORD, log))
    process = setup.processes.start("tinyproxy", [CACHE / "debian/usr/bin/tinyproxy", "-d", "-c", configuration])
    return setup.processes.started(process, [("127.0.0.1", port)])


def tell(setup, table, binary):
    table.about("vCenters behind a proxy")
    port, fleet = free_port(), setup.fleet
    password = RUN / "proxy-password"
    password.write_text("wrong\n")
    proxy = begin(setup, port)
    agent = Agent("proxy", setup, binary, config=CONFIG % (INTERVAL, port, password))
    accepted = lambda vc: vc.state()["logins_accepted"]
    before = [accepted(vc) for vc in fleet.vcenters]

    found = lambda out: json.loads(out)["vcenters"]
    code, out = agent.call("check", "--connect", "--format", "json")
    table.check("check --connect with a wrong password of the proxy: exit code, reason", (1, {"unreachable"}),
                (code, {vc["reason"] for vc in found(out)}))
    said = {vc["message"] for vc in found(out)}
    table.check("… the proxy is named", True, all(f"by the proxy http://127.0.0.1:{port}: " in line for line in said))
    table.check("… logins at the vCenters", before, [accepted(vc) for vc in fleet.vcenters])
    password.write_text(PASSWORD + "\n")
    code, out = agent.call("check", "--connect", "--format", "json")
    table.check("check --connect with the right one: exit code", 0, code)
    facts = lambda name: {str(vc["facts"].get(name)) for vc in found(out)}
    table.check("… by which proxy", {f"http://127.0.0.1:{port}"}, facts("proxy"))
    table.check("… how the certificates are trusted", {"ca_file"}, facts("tls_trust"))

    process = agent.start()
    page = lambda: scraped(setup.telemetry.url("agent") + "/metrics") or {}
    up = lambda: [value for (name, _), value in page().items() if name == "esxi_vcenter_up"]
    states = lambda: sum(name == "esxi_overall_status" for name, _ in page())
    hosts = sum(len(vc.truth()) for vc in fleet.vcenters)
    table.check("both are up, and all hosts are there", True, within(30, "both", lambda: up() == [1, 1] and states() == hosts))
    listening = lambda: sum(value for (name, labels), value in page().items()
                            if name == "esxi_agent_vcenter_hints_total" and ("outcome", "read") in labels)
    table.check("it listens at both, through the proxy", True, within(30, "both", lambda: listening() >= 2))
    setup.processes.end(proxy)
    table.check("the proxy ends: both are missed", True, within(30, "both", lambda: up() == [0, 0]))
    proxy = begin(setup, port)
    table.check("it is back: so are both", True, within(30, "both", lambda: up() == [1, 1]))
    for vc in fleet.vcenters:
        table.check(f"{vc.name}: sessions", 1, vc.state()["sessions"])
    code, _ = setup.processes.end(process, 15)
    table.check("SIGTERM: exit code", 0, code)
    for vc in fleet.vcenters:
        table.check(f"{vc.name}: sessions left", 0, vc.state()["sessions"])
    setup.processes.end(proxy)
    log = (RUN / "tinyproxy.log").read_text()
    table.check("the proxy was asked for the vCenters by name", True, all(f"CONNECT {vc.name}:443" in log for vc in fleet.vcenters))
