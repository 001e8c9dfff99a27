"""Three hours without a Collector, and Collectors that are killed: what the spool holds arrives all the same."""
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
MOST_SECONDS = MINUTES * 60 / 100       # a hundred times as fast as it came
NAME = "example.state"


def tell(setup, table, binary):
    three_hours(setup, table, binary)
    killed_collectors(setup, table, binary)


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
    setup.telemetry.start_plain_collector()
    within(MOST_SECONDS, "all of it", lambda: stored(setup, "plain") == HOSTS)
    table.check(f"hosts all of whose minutes are in Prometheus ({before} before the last Collector)", HOSTS,
                stored(setup, "plain"))
    table.check("samples that Prometheus refused as too old or out of order", 0.0, refusals(setup) - refused)
    end(setup, table, process)


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
