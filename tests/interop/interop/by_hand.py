"""--peers-only: the peers stay up, with everything that is needed to try the agent by hand."""
import shlex
import signal

from .agent import CLASSIC_CONFIG, Agent
from .processes import RUN

# Enters the run's namespaces (names, account), with the agent's environment.
ENTER = """#!/bin/sh
# enter COMMAND …: runs it where the names of the run are known, with the environment of {home}/env
set -a; . {home}/env; set +a
first=$(cat /proc/$(cat {run}/unshare.pid)/task/*/children)
exec nsenter --target "${{first%% *}}" --mount --pid --wd={home} "$@"
"""


def stay(setup):
    fleet, telemetry = setup.fleet, setup.telemetry
    agent = Agent("by-hand", setup, None)
    Agent("by-hand-classic", setup, None, config=CLASSIC_CONFIG, hosts=fleet.by_password)
    enter = RUN / "enter"
    enter.write_text(ENTER.format(home=shlex.quote(str(agent.home)), run=shlex.quote(str(RUN))))
    enter.chmod(0o755)
    print("\nESXi hosts (ssh port %d):" % fleet.ssh_port)
    for host in fleet.hosts:
        traits = [f"stopped: {', '.join(host.stopped)}" if host.stopped else "", f"slow: {host.slow}" if host.slow else "",
                  "key only" if host.key_only else "", "" if host.listening else "nobody listens"]
        print(f"  {host.address}  {host.ip}  {'; '.join(t for t in traits if t) or 'healthy'}")
    print(f"  truth of a service: {RUN}/hosts/NAME/etc/interop/SERVICE (STATE=running|stopped, WAIT=seconds, NOISE='a line')")
    print("vCenters (port 443):")
    for vc in fleet.vcenters:
        print(f"  {vc.name}  {vc.ip}  site {vc.site}")
        print(f"    curl http://127.0.0.1:{vc.control}/state")
        print(f"    curl -X POST 'http://127.0.0.1:{vc.control}/host?name={next(iter(vc.hosts))}&overallStatus=red'"
              "    also connectionState, maintenance, rename")
    print(f"""OTLP/gRPC   {telemetry.url('otlp_grpc')}
received    {RUN}/received/*.jsonl
Prometheus  {telemetry.url('prometheus')}   (expects the agent's /metrics on 127.0.0.1:{telemetry.port['agent']})
Jaeger      {telemetry.url('jaeger_query')}
logs        {RUN}/log

files for the agent: {agent.home}/{{config.yaml,atlas.json,env}}, and …/by-hand-classic with the Python exporter's kind of file
start it:   {enter} /path/to/esxi-otel-agent run -v
by key:     {enter} env -u ESXI_PASSWORD ESXI_KEY_FILE={setup.user_key} /path/to/esxi-otel-agent …     ({fleet.key_only.address})

Ctrl-C ends it all.""", flush=True)
    signal.pause()
