"""A vCenter that is killed and comes back, again and again, sessions lost; and another one beside it."""
import os
import random
import signal
import time

from . import vcenters
from .agent import PASSWORD, VCENTER_USER, Agent
from .received import scraped
from .story import within

RESTARTS = 4
INTERVAL = 2            # seconds between polls
MARGIN = 2              # seconds for login, poll and page

CONFIG = """
prometheus: {{listen: "127.0.0.1:{port}"}}
collectors:
  overall_state_collector: {{enabled: true, interval: %ds, report: {{hardware: false, sensors: false}}}}
state_dir: {home}/state
vcenter: {{ca_file: {ca}}}
otlp: {{endpoint: {otlp}, interval: 2s}}
"""


def tell(setup, table, binary):
    table.about(f"a vCenter that restarts {RESTARTS} times, polled every {INTERVAL} s")
    ill, well = setup.fleet.vcenters
    agent = Agent("restarts", setup, binary, config=CONFIG % INTERVAL)
    process = agent.start()
    page = lambda: scraped(setup.telemetry.url("agent") + "/metrics") or {}
    up = lambda vc: next((value for (name, labels), value in page().items()
                          if name == "esxi_vcenter_up" and ("vcenter", vc.name) in labels), None)
    # One page a poll, and nothing besides.
    said = lambda: well.state()["calls"].get("RetrievePropertiesEx", 0)
    table.check("both are up", True, within(30, "both", lambda: up(ill) == up(well) == 1))
    told = lambda: sum(value for (name, labels), value in page().items()
                       if name == "esxi_agent_vcenter_hints_total" and ("outcome", "read") in labels)
    table.check("it listens at both", True, within(30, "both", lambda: told() >= 2))     # each begins with a read
    before, began = said(), time.monotonic()
    back, sessions, accepted, missed = [], [], [], 0
    for _ in range(RESTARTS):
        running = next(p for p in setup.processes.running if p.name == f"vcsim-{ill.name}")
        os.killpg(running.pid, signal.SIGKILL)
        setup.processes.end(running)
        within(3 * INTERVAL, "it is missed", lambda: up(ill) == 0)
        missed += up(ill) == 0
        time.sleep(random.uniform(0, INTERVAL))
        again = vcenters.begin(setup.processes, ill, VCENTER_USER, PASSWORD)
        vcenters.prepare(setup.processes, ill, again)
        answers = time.monotonic()
        within(10 * INTERVAL, "it is back", lambda: up(ill) == 1)
        back.append(time.monotonic() - answers)
        state = ill.state()
        sessions.append(state["sessions"])
        accepted.append(state["logins_accepted"])
    took = time.monotonic() - began
    table.check("times that it was missed", RESTARTS, missed)
    table.check("longest time until it is back, once it answers: seconds", f"at most {INTERVAL + MARGIN}", f"{max(back):.1f}",
                ok=max(back) <= INTERVAL + MARGIN)
    table.check("sessions on it after each restart", [1] * RESTARTS, sessions)
    table.check("logins that it accepted after each restart", [1] * RESTARTS, accepted)
    polls, expected = said() - before, took / INTERVAL
    table.check(f"polls of the other one in {took:.0f} s", f"{expected:.0f}, one more or less", polls, ok=abs(polls - expected) <= 1.5)
    table.check("sessions on the other one", 1, well.state()["sessions"])
    code, _ = setup.processes.end(process, 15)
    table.check("SIGTERM: exit code", 0, code)
    for vc in setup.fleet.vcenters:
        table.check(f"{vc.name}: sessions left", 0, vc.state()["sessions"])
