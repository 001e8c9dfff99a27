"""A wrong password against a host that locks accounts, by PAM's faillock as on a hardened ESXi; the guard with its defaults."""
import json
import time

from .agent import PASSWORD, Agent
from .peers import ssh
from .private_system import LOCK_AFTER, NAIVE_ACCOUNT
from .processes import NotInTime, wait_for
from .received import scraped

RUNS = 6                # of the agent, one after the other: every second one is killed, the others end in an orderly way
CRASHES = 12
ROUNDS = 10             # of each run at least: together an hour at the default interval
INTERVAL = 1

CONFIG = """
prometheus: {{listen: "127.0.0.1:{port}"}}
collectors:
  critical_service_collector: {{interval: %ds, services: [{services}]}}
state_dir: {home}/state
ssh: {{port: {ssh_port}}}
otlp: {{enabled: false}}
""" % INTERVAL


def tell(setup, table, binary):
    table.about(f"a host that locks an account after {LOCK_AFTER} failures (PAM's faillock)")
    host = setup.fleet.locking
    hostd = "hostd is running."
    look = lambda **who: ssh(setup, host, "/etc/init.d/hostd status", **who)
    table.check("OpenSSH's client gets in", hostd, look())

    agent = Agent("lockout", setup, binary, config=CONFIG, hosts=[host], password="not " + PASSWORD)
    before, rounds = host.rejections(), 0
    for number in range(CRASHES):
        process = agent.start()
        time.sleep(0.05 * number)
        process.kill()
        setup.processes.end(process)
    tried = host.rejections() - before
    table.check(f"tries that sshd counted while the agent was killed {CRASHES} times right after its start", "at most 1", tried,
                ok=tried <= 1)
    for run in range(RUNS):
        rounds += some_rounds(setup, agent, killed=run % 2 == 1)
        if run % 3 == 0:
            agent.call("once")
            rounds += 1
    wanted = RUNS * ROUNDS
    table.check(f"rounds with a wrong password, in {RUNS} runs of the agent, half of them killed, and by `once`",
                f"at least {wanted}", rounds, ok=rounds >= wanted)
    tried = host.rejections() - before
    table.check("tries that sshd counted in all of them", "at most 1", tried, ok=tried <= 1)
    table.check("the account is open: OpenSSH's client gets in with the right password", hostd, look())

    code, out = agent.call("guard", "list", "--format", "json")
    known = json.loads(out) if code == 0 else {}
    table.check("`guard list` names the host that waits", [host.address], [t["address"] for t in known.get("targets", [])])
    table.check("… and the credential, without a word of the password", ["unproven"],
                [c["state"] for c in known.get("credentials", [])] if PASSWORD not in out else out)
    agent.env["ESXI_PASSWORD"] = PASSWORD
    code, _ = agent.call("once")
    table.check("with the right password the agent gets in at once: exit code of `once`", 0, code)
    code, _ = agent.call("guard", "release", "--all")
    table.check("`guard release --all`: exit code", 0, code)

    table.check("a naive client's account is open", hostd, look(account=NAIVE_ACCOUNT))
    for _ in range(LOCK_AFTER):
        look(account=NAIVE_ACCOUNT, password="not " + PASSWORD)
    locked = look(account=NAIVE_ACCOUNT) != hostd
    table.check(f"a naive client, ssh {LOCK_AFTER} times in a loop, has locked its account", True, locked)


def some_rounds(setup, agent, killed):
    """Lets the agent run for a few rounds; returns how many there were."""
    url = setup.telemetry.url("agent") + "/metrics"
    visits = lambda: sum(value for (name, _), value in (scraped(url) or {}).items() if name == "esxi_agent_visits_total")
    process = agent.start()
    try:
        wait_for("rounds of the agent", lambda: visits() >= ROUNDS, 60)
        return int(visits())
    except NotInTime:
        return int(visits())
    finally:
        if killed:
            process.kill()
        setup.processes.end(process, 15)
        time.sleep(INTERVAL)
