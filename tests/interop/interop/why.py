"""Why a host is red: sensors, processors, services and configuration issues, as govmomi's simulator has them."""
from .agent import Agent
from .received import scraped, series
from .story import within

# Of govmomi's ESXi. Its type has a blank and a capital, as those of real hosts.
SENSOR, SENSOR_KIND = "VMware vsan 6.0.0-2.34.3563498 2016-02-17 17:18:19.000", "software_components_sensor"
CPU = "CPU1"
ISSUE = "esx.problem.net.redundancy.lost"
ARRIVAL = 5             # seconds: the poll's second, and the questions that follow it

CONFIG = """
prometheus: {{listen: "127.0.0.1:{port}"}}
collectors:
  overall_state_collector: {{enabled: true, interval: 1s, report: {{services: true}}}}
state_dir: {home}/state
vcenter: {{ca_file: {ca}}}
otlp: {{endpoint: {otlp}, interval: 2s}}
"""


def tell(setup, table, binary):
    table.about("why a host is red")
    vc = setup.fleet.vcenters[0]
    well, before = next(iter(vc.hosts.items()))
    vc.set(well, overallStatus="green")
    agent = Agent("why", setup, binary, config=CONFIG)
    process = agent.start()
    url = setup.telemetry.url("agent") + "/metrics"
    in_inventory = {host.address for host in setup.fleet.visited}
    address = lambda name: {"address": name} if name in in_inventory else {}
    of = lambda name, **more: {"vcenter": vc.name, "site": vc.site, "hostsystem": name, **address(name), **more}
    latest = lambda name: {key: value for key, value in setup.file.latest(name).items() if dict(key[1])["vcenter"] == vc.name}

    services = {series("esxi.host.service.running", of(name, service=service, policy=told["Policy"])): int(told["Running"])
                for name, host in vc.state()["hosts"].items() for service, told in host["Services"].items()}
    found = lambda: latest("esxi.host.service.running")
    within(30, "the services of every host", lambda: found() == services)
    table.check_series("services of every host, running or not, as the vCenter has them", services, found())
    table.check("hosts with services, services a host", (len(vc.truth()), True),
                (len({dict(key[1])["hostsystem"] for key in found()}), len(found()) >= 5 * len(vc.truth())))

    sensor = series("esxi.host.hardware.health", of(well, component=SENSOR, kind=SENSOR_KIND, state="red"))
    cpu = series("esxi.host.hardware.health", of(well, component=CPU, kind="cpu", state="yellow"))
    issue = series("esxi.host.config_issue", of(well, issue=ISSUE))
    arrives = lambda name, wanted: within(ARRIVAL, name, lambda: latest(name) == wanted)
    vc.set(well, cpu=f"{CPU}:yellow")
    vc.set(well, sensor=f"{SENSOR}:red")
    vc.set(well, issue=ISSUE)
    asked = lambda: sum(value for (name, labels), value in (scraped(url) or {}).items() if name == "esxi_agent_soap_requests_total")
    enough = asked() + 8
    within(30, "some polls more", lambda: asked() >= enough)
    table.check_series("while it is green: no sensors (they cost 37 kB a host)", {},
                       {key: value for key, value in latest("esxi.host.hardware.health").items() if key == sensor})
    vc.set(well, overallStatus="red")
    arrives("esxi.host.hardware.health", {sensor: 1, cpu: 1})
    table.check_series(f"it turns red: its sensor and its processor, within {ARRIVAL} s", {sensor: 1, cpu: 1},
                       latest("esxi.host.hardware.health"))
    arrives("esxi.host.config_issue", {issue: 1})
    table.check_series("… and its configuration issue", {issue: 1}, latest("esxi.host.config_issue"))
    vc.set(well, issue="", overallStatus="green")
    arrives("esxi.host.hardware.health", {cpu: 1})
    table.check_series("it is green again: the sensor ends", {cpu: 1}, latest("esxi.host.hardware.health"))
    arrives("esxi.host.config_issue", {})
    table.check_series("… and so does the issue", {}, latest("esxi.host.config_issue"))
    vc.set(well, sensor=f"{SENSOR}:green")
    vc.set(well, cpu=f"{CPU}:green", overallStatus=before)
    table.check(f"sessions at {vc.name} meanwhile", 1, vc.state()["sessions"])
    code, _ = setup.processes.end(process, 15)
    table.check("SIGTERM: exit code", 0, code)
    table.check(f"{vc.name}: sessions left", 0, vc.state()["sessions"])
