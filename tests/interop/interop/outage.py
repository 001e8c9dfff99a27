"""Three hours without a Collector, and Collectors that are killed, or stand in for one that was: everything arrives."""
import os
import random
import signal
import subprocess
import time

from .agent import FULL_CONFIG, Agent
from .received import scraped
from .story import within

HOSTS, MINUTES = 200, 180
KILLS = 8
RANDOM_SECONDS = float(os.environ.get("INTEROP_KILL_SECONDS", "45"))
LONGEST_PAUSE = 30                      # the agent's own, between two tries
MOST_SECONDS = MINUTES * 60 / 100       # a hundred times as fast as it came
NAME = "example.state"


def tell(setup, table, binary):
    three_hours(setup, table, binary)
    killed_collectors(setup, table, binary)
    collectors_at_random(setup, table, binary)
    second_collector(setup, table, binary)


def spooled(name, setup, binary, config=FULL_CONFIG):
    """An agent in whose spool three hours wait, a point a minute and host."""
    agent = Agent(name, setup, binary, config=config, hosts=setup.fleet.by_password[:1])
    subprocess.run([os.environ["FILL_SPOOL"], agent.home / "state" / "spool", str(HOSTS), str(MINUTES)],
                   check=True, stdout=subprocess.DEVNULL, timeout=60)
    return agent


def three_hours(setup, table, binary):
    table.about("three hours without a Collector, out of the spool")
    refused = refusals(setup)
    agent = spooled("outage", setup, binary)
    process, began = agent.start(), time.monotonic()
    expected = [float(minute) for minute in range(MINUTES)]
    arrived = within(MOST_SECONDS, "all of it", lambda: len(received(setup)) == HOSTS * MINUTES)
    took = time.monotonic() - began
    table.check(f"seconds until {HOSTS * MINUTES} points are at the Collector", f"at most {MOST_SECONDS:g}",
                f"{took:.1f}" if arrived else "never", ok=arrived)
    by_host = {}
    for labels, value, at in received(setup):
        by_host.setdefault(labels, []).append((at, value))
    table.check("hosts whose every minute came in order", HOSTS, sum([v for _, v in p] == expected for p in by_host.values()))
    spaced = [all(59 < later - earlier < 61 for (earlier, _), (later, _) in zip(p, p[1:])) for p in by_host.values()]
    table.check("hosts whose points have their own times", HOSTS, sum(spaced))
    table.check("hosts all of whose minutes are in Prometheus, by remote write", HOSTS, stored(setup, "remote_write"))
    table.check("samples that Prometheus refused as too old or out of order", 0.0, refusals(setup) - refused)
    table.check("what was said of the compression, which the Collector knows", 0, agent.log().count("does not know"))
    failed = 'max_over_time({__name__=~"otelcol_exporter_send_failed_.+"}[5m])'
    table.check("points that the Collector could not hand on", 0.0, setup.prometheus.sum(failed))
    end(setup, table, process)


def killed_collectors(setup, table, binary):
    table.about(f"{KILLS} Collectors that are killed while three hours come out of the spool")
    refused = refusals(setup)
    config = FULL_CONFIG.replace("{otlp}", setup.telemetry.url("plain_grpc"))
    agent = spooled("outage-kills", setup, binary, config)
    process, kills = agent.start(), 0
    while kills < KILLS:
        collector = setup.telemetry.start_plain_collector()
        time.sleep(random.uniform(0.05, 0.8))
        os.killpg(collector.pid, signal.SIGKILL)
        setup.processes.end(collector)
        kills += 1
    before = stored(setup, "plain")
    last = setup.telemetry.start_plain_collector()
    within(MOST_SECONDS, "all of it", lambda: stored(setup, "plain") == HOSTS)
    table.check(f"hosts all of whose minutes are in Prometheus ({before} before the last Collector)", HOSTS,
                stored(setup, "plain"))
    table.check("samples that Prometheus refused as too old or out of order", 0.0, refusals(setup) - refused)
    end(setup, table, process)
    setup.processes.end(last)


def collectors_at_random(setup, table, binary):
    """A fleet at work, and Collectors that come and are killed: every point that the agent has made arrives, each once."""
    table.about(f"Collectors that are killed at random for {RANDOM_SECONDS:g} s, with a fleet at work")
    refused = refusals(setup)
    config = FULL_CONFIG.replace("{otlp}", setup.telemetry.url("plain_grpc"))
    agent = Agent("outage-random", setup, binary, config=config, hosts=setup.fleet.by_password)
    agent.env["OTEL_RESOURCE_ATTRIBUTES"] = "service.instance.id=outage-random"
    process, began, kills = agent.start(), time.monotonic(), 0
    while time.monotonic() < began + RANDOM_SECONDS:
        collector = setup.telemetry.start_plain_collector()
        time.sleep(random.uniform(0.1, 6))
        os.killpg(collector.pid, signal.SIGKILL)
        setup.processes.end(collector)
        kills += 1
        time.sleep(random.uniform(0, 4))
    seconds = round(time.monotonic() - began)
    last = setup.telemetry.start_plain_collector()
    page = lambda: scraped(setup.telemetry.url("agent") + "/metrics") or {}
    points = lambda outcome: sum(value for (name, labels), value in page().items()
                                 if name == "esxi_agent_export_points_total" and ("outcome", outcome) in labels)
    window = seconds + LONGEST_PAUSE + 60
    stored_points = lambda: sum(len(row["values"]) for row in setup.prometheus.query(
        f'{{way="plain",instance="outage-random",__name__=~"esxi_.+"}}[{window}s]'))
    # Both counts grow with each export; between two of them they stand.
    settled = lambda: (before := points("exported")) == stored_points() == points("exported") and before
    produced = within(LONGEST_PAUSE + 30, "as many points as were made", settled)
    taken, found = points("exported"), stored_points()
    table.check(f"points in Prometheus, of those that {kills + 1} Collectors took in {seconds} s", f"{taken:g}", f"{found:g}",
                ok=produced and taken > 0)
    for outcome in ("dropped", "rejected"):
        table.check(f"points that were {outcome}", 0.0, points(outcome))
    gap = longest_gap(setup, window, 'way="plain",instance="outage-random"')
    table.check("longest time without a value of esxi_host_ssh_up, of any host: seconds", "at most 3", f"{gap:.1f}", ok=0 < gap <= 3)
    table.check("samples that Prometheus refused as too old or out of order", 0.0, refusals(setup) - refused)
    end(setup, table, process)
    setup.processes.end(last)


def second_collector(setup, table, binary):
    table.about("a Collector that is killed, and another one that stands in for it")
    first, second = setup.telemetry.url("plain_grpc"), setup.telemetry.url("otlp_grpc")
    config = FULL_CONFIG.replace("endpoint: {otlp}", f"endpoint: {first}\n  failover: [{second}]")
    agent = Agent("outage-failover", setup, binary, config=config, hosts=setup.fleet.by_password)
    agent.env["OTEL_RESOURCE_ATTRIBUTES"] = "service.instance.id=outage-failover"
    collector, hosts = setup.telemetry.start_plain_collector(), len(setup.fleet.by_password)
    up = lambda way: len(setup.prometheus.query(f'esxi_host_ssh_up{{way="{way}",instance="outage-failover"}}'))
    process, began = agent.start(), time.monotonic()
    table.check("all hosts arrive by the first one", True, within(20, "all", lambda: up("plain") == hosts))
    table.check("… and none by the second one", 0, up("remote_write"))
    os.killpg(collector.pid, signal.SIGKILL)
    setup.processes.end(collector)
    table.check("it is killed: all hosts arrive by the second one", True,
                within(20, "all", lambda: up("remote_write") == hosts))
    table.check("… which the log tells", 1, agent.log().count(f"everything goes to {second}, until {first} is back"))
    end(setup, table, process)
    window = round(time.monotonic() - began) + 10
    gap = longest_gap(setup, window, 'instance="outage-failover"')
    table.check("longest time without a value of esxi_host_ssh_up, of any host: seconds", "at most 3", f"{gap:.1f}", ok=0 < gap <= 3)


def longest_gap(setup, window, of):
    """Longest time between two samples of a series that is exported every 2 s, whoever is there to take it."""
    times = {}
    for row in setup.prometheus.query(f"esxi_host_ssh_up{{{of}}}[{window}s]"):
        times.setdefault(row["metric"]["hostsystem"], []).extend(at for at, _ in row["values"])
    return max((later - earlier for t in map(sorted, times.values()) for earlier, later in zip(t, t[1:])), default=0)


def received(setup):
    return [(labels, value, at) for name, labels, value, at in setup.file.read().points if name == NAME]


def stored(setup, way):
    """Hosts of which Prometheus has every minute."""
    found = f'count_over_time({NAME.replace(".", "_")}{{way="{way}"}}[4h]) == {MINUTES}'
    return len(setup.prometheus.query(found))


def refusals(setup):
    page = scraped(setup.telemetry.url("prometheus") + "/metrics") or {}
    return sum(value for (name, _), value in page.items()
               if name.startswith("prometheus_tsdb_") and name.endswith("_samples_total")
               and any(why in name for why in ("out_of_bound", "out_of_order_samples", "too_old")))


def end(setup, table, process):
    code, took = setup.processes.end(process, 15)
    table.check("SIGTERM: seconds until it has ended", "at most 10", f"{took:.1f}", ok=code == 0 and took <= 10)
