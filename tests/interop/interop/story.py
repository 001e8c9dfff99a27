"""What the agent is held to, in the order in which it is tried."""
import json
import re
import subprocess
import time

from . import hints
from .agent import CLASSIC_CONFIG, PASSWORD, SERVICE_INTERVAL, SERVICE_NAME, SLOW_SPAN, STATUS_INTERVAL, Agent
from .processes import CACHE, LOGS, NotInTime, get, wait_for
from .received import scraped, series
from .telemetry import HERE

ALARM = "Host memory status"
ARRIVAL = 3             # seconds that a change may take beyond the pace at which it is looked for
# How a series is looked at: pushed, pulled, and by way of both of the Collector's Prometheus exporters.
WAYS = {"file": "in the Collector's file", "scrape": "scraped by Prometheus",
        "exporter": "in Prometheus by prometheusexporter", "remote_write": "in Prometheus by remote write"}


def tell(setup, table, binary):
    the_example_is_valid(setup, table)
    one_round(setup, table, binary)
    hints.tell(setup, table, binary, within)
    agent = Agent("main", setup, binary)
    logins = {host.address: host.logins() for host in setup.fleet.by_password}
    process = agent.start()
    try:
        everything_arrives(setup, table)
        changes_arrive(setup, table)
        the_slow_script_is_found(setup, table)
        the_collector_goes_and_comes_back(setup, table)
        nothing_was_rejected(setup, table)
        kind_to_the_fleet(setup, table, logins)
    finally:
        it_ends(setup, table, process)
    wrong_password(setup, table, binary)        # last: the series that it leaves behind would stand beside the true ones


def the_example_is_valid(setup, table):
    table.about("otel-collector.example.yaml")
    example = HERE.parent.parent / "otel-collector.example.yaml"
    check = setup.processes.start("otelcol-validate", [CACHE / "bin/otelcol", "validate", "--config", example])
    code = check.wait(30)
    said = (LOGS / "otelcol-validate.log").read_text().strip()
    table.check("the Collector accepts it", "exit code 0, nothing to say", f"exit code {code}, {said or 'nothing to say'}")


def one_round(setup, table, binary):
    table.about("one round, with the Python exporter's own files")
    fleet = setup.fleet
    fit = Agent("once-fit", setup, binary, config=CLASSIC_CONFIG, hosts=fleet.by_password)
    code, _ = fit.call("check")
    table.check("check accepts configuration and inventory: exit code", 0, code)
    code, out = fit.call("check", "--connect", "--format", "json")
    allowed = [host["facts"].get("sessions_allowed") for host in json.loads(out)["hosts"]] if is_json(out) else out
    table.check("check --connect: sessions that each host allows (MaxSessions 1)", [1] * len(fleet.by_password), allowed)
    code, out = fit.call("once", "--format", "table")
    table.check("once, every host reachable: exit code", 0, code)
    table.check("its table names every host", len(fleet.by_password), sum(host.name in out for host in fleet.by_password))
    sick = Agent("once-sick", setup, binary, config=CLASSIC_CONFIG, hosts=[*fleet.by_password, fleet.dead])
    code, out = sick.call("once", "--format", "table")
    table.check("once, a host refuses the connection: exit code", 1, code)
    table.check("its table names that host", True, fleet.dead.name in out)
    by_key = Agent("once-by-key", setup, binary, config=CLASSIC_CONFIG, hosts=[fleet.key_only], key=setup.user_key)
    code, out = by_key.call("once", "--format", "table")
    table.check("once, with a key instead of a password: exit code", 0, code)
    table.check("its table names that host, too", True, fleet.key_only.name in out)
    code, out = fit.call("once", "--format", "json")
    table.check("once --format json prints JSON", True, is_json(out))
    for vc in fleet.vcenters:
        table.check(f"once has logged out of {vc.name}: sessions left", 0, vc.state()["sessions"])


def is_json(text):
    try:
        return bool(json.loads(text))
    except ValueError:
        return False


def wrong_password(setup, table, binary):
    """With nothing but a wrong password, as after a change of passwords that passed the agent by."""
    table.about("a wrong password")
    fleet = setup.fleet
    before_ssh = sum(host.rejections() for host in fleet.reachable)
    before_soap = sum(vc.state()["logins_refused"] for vc in fleet.vcenters)
    agent = Agent("wrong-password", setup, binary, password="not " + PASSWORD)
    process = agent.start()
    url = setup.telemetry.url("agent") + "/metrics"
    refused = lambda: said_of(scraped(url), "esxi_host_ssh_up", [h.address for h in fleet.by_password], 0)
    told = within(90, "every host says so", refused)
    table.check("every host with a password says up 0", True, told)
    held_back = lambda: agents_own(url, "logins", "guarded")
    enough = 3 * len(fleet.by_password)
    within(90, "three rounds", lambda: held_back() >= enough)
    table.check("tries that the agent held back (it went on for three rounds)", f"at least {enough}", f"{held_back():g}",
                ok=held_back() >= enough)
    reasons = {dict(labels)["reason"] for (name, labels), value in (scraped(url) or {}).items()
               if name == "esxi_host_ssh_failure" and value == 1
               and dict(labels)["hostsystem"] in [h.address for h in fleet.by_password]}
    table.check("the reasons that are given", "auth_failed, auth_guarded at most", ", ".join(sorted(reasons)),
                ok=reasons and reasons <= {"auth_failed", "auth_guarded"})
    code, took = setup.processes.end(process, 15)
    tried = sum(host.rejections() for host in fleet.reachable) - before_ssh
    table.check(f"tries that {len(fleet.by_password)} sshds counted", "1 to 3", tried, ok=1 <= tried <= 3)
    tried = sum(vc.state()["logins_refused"] for vc in fleet.vcenters) - before_soap
    table.check(f"tries that {len(fleet.vcenters)} vCenters counted", "1 to 3", tried, ok=1 <= tried <= 3)
    table.check("SIGTERM: seconds until it has ended", "at most 10", f"{took:.1f}", ok=code is not None and took <= 10)


def said_of(page, name, addresses, value):
    return page is not None and all(value_of(page, name, address) == value for address in addresses)


def agents_own(url, what, outcome):
    """The sum of the agent's counters whose name says `what` and whose name or labels say `outcome`."""
    return sum(value for (name, labels), value in (scraped(url) or {}).items()
               if name.startswith("esxi_agent_") and what in name and outcome in name + str(labels))


def value_of(page, name, address):
    for (found, labels), value in (page or {}).items():
        if found == name and dict(labels).get("hostsystem") == address:
            return value
    return None


def within(seconds, what, condition):
    try:
        wait_for(what, condition, seconds)
        return True
    except NotInTime:
        return False


def everything_arrives(setup, table):
    table.about("every series, with its value, against the truth that was set")
    truth = setup.fleet.truth()
    within(90, "everything has arrived", lambda: all(
        seen(setup, name, way) == translated(expected, way) for name, expected in truth.items() for way in WAYS))
    for name, expected in truth.items():
        for way in WAYS:
            table.check_series(f"{name.replace('.', '_')} {WAYS[way]}", translated(expected, way), seen(setup, name, way))
    setup.file.read()
    table.check("service.name of what was pushed", SERVICE_NAME, ", ".join(sorted(setup.file.services - {"interop-probe"})))
    table.check("the meter's scope is empty", "''", ", ".join(map(repr, sorted(setup.file.scopes))))


def translated(expected, way):
    """The same series under the name that it has on this way."""
    return expected if way == "file" else {(n.replace(".", "_"), labels): v for (n, labels), v in expected.items()}


def seen(setup, name, way):
    if way == "file":
        return setup.file.latest(name)
    return setup.prometheus.latest(name.replace(".", "_"), way)


def changes_arrive(setup, table):
    table.about("changes")
    fleet = setup.fleet
    at = {"site": fleet.healthy.site, "hostsystem": fleet.healthy.address, "service": "ntpd"}
    service = series("esxi.critical_service.status", at)
    vc = fleet.vcenters[0]
    status = series("esxi.overall_status", {"vcenter": vc.name, "site": vc.site, "hostsystem": fleet.healthy.address})
    connected = series("esxi.host.connection_state", {"address": fleet.healthy.address, "vcenter": vc.name, "site": vc.site,
                                                      "hostsystem": fleet.healthy.address, "state": "connected"})
    alarm = series("esxi.host.alarm", {"address": fleet.healthy.address, "vcenter": vc.name, "site": vc.site,
                                       "hostsystem": fleet.healthy.address, "alarm": ALARM, "severity": "red"})

    for what, change, key, value, pace in (
        ("a service stops", lambda: fleet.healthy.set("ntpd", False), service, 0, SERVICE_INTERVAL),
        ("a service runs again", lambda: fleet.healthy.set("ntpd", True), service, 1, SERVICE_INTERVAL),
        ("a host turns red in vCenter", lambda: vc.set(fleet.healthy.address, overallStatus="red"), status, 0, STATUS_INTERVAL),
        ("an alarm says why", lambda: vc.set(fleet.healthy.address, alarm=ALARM), alarm, 1, STATUS_INTERVAL),
        ("a host turns yellow in vCenter", lambda: vc.set(fleet.healthy.address, overallStatus="yellow"), status, 1, STATUS_INTERVAL),
        ("a host loses vCenter", lambda: vc.set(fleet.healthy.address, connectionState="notResponding"),
         connected, 0, STATUS_INTERVAL),
        ("a host is back in vCenter", lambda: vc.set(fleet.healthy.address, connectionState="connected"),
         connected, 1, STATUS_INTERVAL),
    ):
        change()
        name, limit = key[0], pace + ARRIVAL
        changed = time.monotonic()
        for way in ("file", "exporter", "remote_write"):
            sought = next(iter(translated({key: 0}, way)))
            arrived = within(max(0, 30 - (time.monotonic() - changed)), what, lambda: seen(setup, name, way).get(sought) == value)
            took = time.monotonic() - changed
            table.check(f"{what}: seconds until it is {WAYS[way]}", f"at most {limit}",
                        f"{took:.1f}" if arrived else "never", ok=arrived and took <= limit)


def the_slow_script_is_found(setup, table):
    table.about("traces")
    (service, sleep), host = next(iter(setup.fleet.slow.slow.items())), setup.fleet.slow
    def named_by_service():
        return [span for span in setup.jaeger.spans(SERVICE_NAME, sleep)
                if service in span[0] or any(service == value for value in span[2].values())]
    within(60, "the slow script's span", named_by_service)
    found = named_by_service()
    name, took, tags = found[0] if found else ("none", 0, {})
    table.check(f"Jaeger has a span of {service}'s script that took at least {sleep} s", "one that names it",
                f"{name}, {took:.1f} s, {tags}" if found else "none", ok=found)
    everything = setup.jaeger.spans(SERVICE_NAME, SLOW_SPAN)
    table.check("… and a trace that names the host", host.address,
                host.address if any(host.address in span[2].values() for span in everything) else "none")


def the_collector_goes_and_comes_back(setup, table):
    table.about("the Collector is away for a while")
    host = setup.fleet.stopped
    key = series("esxi.critical_service.status", {"site": host.site, "hostsystem": host.address, "service": "ntpd"})
    setup.telemetry.stop_collector()
    away = time.time()
    url = setup.telemetry.url("agent") + "/metrics"
    on_page = next(iter(translated({key: 0}, "scrape")))
    for running, what in ((True, "a service runs for a moment"), (False, "and stops again")):
        host.set("ntpd", running)
        table.check(f"/metrics does not care: {what}", True,
                    within(60, what, lambda: (scraped(url) or {}).get(on_page) == int(running)))
    back = time.time()
    setup.telemetry.start_collector()
    points = lambda: [(at, value) for name, labels, value, at in setup.file.read().points if (name, labels) == key]
    table.check("the moment of that time arrives afterwards, with its own time", True,
                within(90, "it arrives", lambda: any(value == 1 and away < at < back for at, value in points())))
    table.check("… and so does its end", True, within(60, "its end", lambda: points()[-1][1] == 0))
    times = [at for at, _ in points()]
    table.check("… in the order of time", True, times == sorted(times))


def nothing_was_rejected(setup, table):
    table.about("nothing was rejected")
    prometheus = setup.prometheus
    taken = prometheus.sum('max_over_time({__name__=~"otelcol_receiver_accepted_metric_points.*"}[15m])')
    table.check("points that the Collector accepted, by its own telemetry", "more than 0", f"{taken:g}", ok=taken > 0)
    for what, pattern in (("refused by its receiver", "otelcol_receiver_(refused|failed)_.+"),
                          ("refused by its processors", "otelcol_processor_(refused|dropped)_.+"),
                          ("that its exporters could not hand on", "otelcol_exporter_(send|enqueue)_failed_.+")):
        table.check(f"points and spans {what}", 0.0, prometheus.sum(f'max_over_time({{__name__=~"{pattern}"}}[15m])'))
    errors = [line for line in (LOGS / "otelcol.log").read_text(errors="replace").splitlines()
              if line.startswith("{") and json.loads(line).get("level") in ("warn", "error", "fatal")]
    table.check("warnings and errors in the Collector's log", "none", errors[0] if errors else "none")
    lost = re.findall(r"out.of.order|duplicate sample|too old", (LOGS / "prometheus.log").read_text(errors="replace"), re.I)
    table.check("samples that Prometheus calls out of order or twice", 0, len(lost))
    url = setup.telemetry.url("agent") + "/metrics"
    table.check("what promtool has to say about /metrics", "nothing", promtool(url) or "nothing")
    exported = agents_own(url, "points", "exported")
    table.check("points exported, by the agent's own count", "more than 0", f"{exported:g}", ok=exported > 0)
    for outcome in ("rejected", "dropped"):
        table.check(f"points {outcome}, by the agent's own count", 0, agents_own(url, "points", outcome))


def promtool(url):
    checked = subprocess.run([CACHE / "debian/usr/bin/promtool", "check", "metrics"], input=(get(url) or "").encode(),
                             capture_output=True, timeout=30)
    return " / ".join((checked.stdout + checked.stderr).decode(errors="replace").splitlines())


def kind_to_the_fleet(setup, table, logins_before):
    table.about("kind to the fleet")
    fleet = setup.fleet
    for host in fleet.by_password:
        table.check(f"{host.name}: logins in all this time", 1, host.logins() - logins_before[host.address])
    for vc in fleet.vcenters:
        table.check(f"{vc.name}: sessions", 1, vc.state()["sessions"])
    table.check("connections to the out-of-band address of the inventory", 0, fleet.out_of_band.touched)


def it_ends(setup, table, process):
    table.about("SIGTERM")
    code, took = setup.processes.end(process, 15)
    table.check("seconds until the agent has ended", "at most 10", f"{took:.1f}", ok=code is not None and took <= 10)
    table.check("its exit code", 0, code)
    for vc in setup.fleet.vcenters:
        table.check(f"{vc.name}: sessions left", 0, vc.state()["sessions"])
