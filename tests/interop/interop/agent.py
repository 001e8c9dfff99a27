"""The agent, run as an operator runs it: two files, a few environment variables, one command."""
import os
import shlex
import subprocess

from . import private_system
from .processes import LOGS, RUN
from .ssh_hosts import SERVICES

# What the suite takes for granted about the agent stands here and in fleet.truth(), nowhere else.
SERVICE_NAME = "esxi-otel-agent"
VCENTER_USER = "monitor@vsphere.local"
PASSWORD = "pä&<\">'$wörd"           # XML, shell and UTF-8 each have something to stumble over
SERVICE_INTERVAL = 5
STATUS_INTERVAL = 1
SLOW_SPAN = 1                         # spans of visits that take longer are kept

# The Python exporter's own file; only the port of the run's sshd is added.
CLASSIC_CONFIG = """
port: {port}
ssl_verify: false
collectors:
  overall_state_collector:
    enabled: true
  critical_service_collector:
    enabled: true
    max_threads: 10
    services: [{services}]
ssh: {{port: {ssh_port}}}
"""

FULL_CONFIG = """
prometheus: {{listen: "127.0.0.1:{port}"}}
collectors:
  overall_state_collector:
    enabled: true
    interval: {status_interval}s
  critical_service_collector:
    enabled: true
    interval: {service_interval}s
    services: [{services}]
state_dir: {home}/state
ssh: {{port: {ssh_port}, host_key_policy: accept-new}}
vcenter: {{ca_file: {ca}}}
otlp:
  endpoint: {otlp}
  interval: 2s
  traces: {{enabled: true, keep: {{slower_than: {slow_span}s}}}}
  logs: {{records: true}}
"""


class Agent:
    """One home: configuration, inventory, state. `binary` may be missing where only the files are wanted.
    The account proves itself at the hosts by `password`, or by `key` where there is one."""

    def __init__(self, name, setup, binary, config=FULL_CONFIG, hosts=None, password=PASSWORD, key=None):
        self.name, self.setup, self.binary = name, setup, binary
        self.home = RUN / "agent" / name
        (self.home / "state").mkdir(parents=True)
        fleet, port = setup.fleet, setup.telemetry.port
        (self.home / "atlas.json").write_text(fleet.atlas(hosts))
        (self.home / "config.yaml").write_text(config.format(
            port=port["agent"], ssh_port=fleet.ssh_port, services=", ".join(SERVICES), home=self.home, ca=setup.ca,
            status_interval=STATUS_INTERVAL, service_interval=SERVICE_INTERVAL, slow_span=SLOW_SPAN,
            otlp=setup.telemetry.url("otlp_grpc")).lstrip())
        self.env = {
            "VCENTER_USER": VCENTER_USER, "VCENTER_PASSWORD": password,
            "ESXI_USER": private_system.ACCOUNT,
            **({"ESXI_KEY_FILE": str(key)} if key else {"ESXI_PASSWORD": password}),
            "CONFIG_FILE": str(self.home / "config.yaml"), "ATLAS_FILE": str(self.home / "atlas.json"),
            "STATE_DIRECTORY": str(self.home / "state"),
        }
        (self.home / "env").write_text("".join(f"{k}={shlex.quote(v)}\n" for k, v in self.env.items()))

    def environment(self):
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8", **self.env}

    def call(self, *args, seconds=60):
        """Runs a verb to its end. Returns exit code (None: it had to be killed) and standard output."""
        with open(LOGS / f"agent-{self.name}.log", "ab") as log:
            try:
                done = subprocess.run([self.binary, *args], env=self.environment(), cwd=self.home, stdin=subprocess.DEVNULL,
                                      stdout=subprocess.PIPE, stderr=log, timeout=seconds)
            except subprocess.TimeoutExpired as late:
                return None, (late.stdout or b"").decode(errors="replace")
        (self.home / f"{args[0]}.out").write_bytes(done.stdout)
        return done.returncode, done.stdout.decode(errors="replace")

    def start(self):
        return self.setup.processes.start(f"agent-{self.name}", [self.binary, "run", "-v"], env=self.environment())

    def log(self):
        return (LOGS / f"agent-{self.name}.log").read_text(errors="replace")
