"""All the peers of one run, and a look at each of them with a client that is not the agent."""
import json
import os
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from xml.sax.saxutils import escape

from . import private_system, ssh_hosts, vcenters
from .agent import PASSWORD, VCENTER_USER
from .fleet import Fleet
from .processes import RUN, NotInTime, Processes, get, wait_for
from .received import CollectorFile, Jaeger, Prometheus, series
from .telemetry import Telemetry


class Setup:
    def __init__(self):
        self.processes = Processes()

    def start(self):
        self.fleet = Fleet()
        roots = private_system.set_up(self.fleet.names(), PASSWORD, ssh_hosts.PAM_SERVICE,
                                      ssh_hosts.LOCKING_PAM_SERVICE)
        self.ca = vcenters.make_certificates([vc.name for vc in self.fleet.vcenters])
        self.user_key, public = ssh_hosts.make_user_key()
        self.telemetry = Telemetry(self.processes)
        self.telemetry.start()
        vcenters.start(self.processes, self.fleet.vcenters, VCENTER_USER, PASSWORD)
        ssh_hosts.start(self.processes, [*self.fleet.hosts, self.fleet.locking], roots, self.fleet.ssh_port, public)
        self.file = CollectorFile()
        self.prometheus = Prometheus(self.telemetry.url("prometheus"))
        self.jaeger = Jaeger(self.telemetry.url("jaeger_query"))


def ssh(setup, host, command, account=private_system.ACCOUNT, password=PASSWORD):
    """OpenSSH's own client, by password (asked for by keyboard-interactive) or by key."""
    ask = RUN / "askpass"
    ask.write_text("#!/bin/sh\nprintf '%s\\n' \"$INTEROP_PASSWORD\"\n")
    ask.chmod(0o700)
    by = ["-o", "PreferredAuthentications=keyboard-interactive", "-o", "NumberOfPasswordPrompts=1"]
    if host.key_only:
        by = ["-i", setup.user_key, "-o", "IdentitiesOnly=yes", "-o", "PreferredAuthentications=publickey"]
    done = subprocess.run(
        ["ssh", "-F", "none", "-p", str(setup.fleet.ssh_port), "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR",
         "-o", f"UserKnownHostsFile={RUN}/known_hosts_of_ssh", "-o", "ConnectTimeout=10", *by,
         f"{account}@{host.address}", command],
        env={**os.environ, "INTEROP_PASSWORD": password, "SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"},
        stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    return done.stdout.decode(errors="replace").strip() or done.stderr.decode(errors="replace").strip()


def soap(setup, vc, body, cookie=""):
    """One SOAP call. Returns the answer's text (a fault's as well) and the cookie."""
    envelope = ('<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"><soapenv:Body>'
                f'{body}</soapenv:Body></soapenv:Envelope>').encode()
    request = urllib.request.Request(f"https://{vc.name}/sdk", envelope, {
        "Content-Type": "text/xml; charset=utf-8", "SOAPAction": "urn:vim25/6.5", "Cookie": cookie})
    trust = ssl.create_default_context(cafile=setup.ca)
    try:
        with urllib.request.urlopen(request, timeout=10, context=trust) as answer:
            return answer.read().decode(), answer.headers.get("Set-Cookie", "").split(";")[0]
    except urllib.error.HTTPError as fault:
        return fault.read().decode(), ""


def soap_login_and_logout(setup, vc):
    manager = '<_this type="SessionManager">SessionManager</_this>'
    answer, cookie = soap(setup, vc, f'<Login xmlns="urn:vim25">{manager}<userName>{escape(VCENTER_USER)}</userName>'
                                     f'<password>{escape(PASSWORD)}</password></Login>')
    if "<LoginResponse" not in answer:
        return answer[:200]
    inside = vc.state()["sessions"]
    soap(setup, vc, f'<Logout xmlns="urn:vim25">{manager}</Logout>', cookie)
    return f"{inside} session, then {vc.state()['sessions']}"


def send_probe(setup):
    """One point and one span by OTLP/HTTP, as from some other program."""
    now = str(time.time_ns())
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "interop-probe"}}]}
    point = {"asInt": "7", "timeUnixNano": now, "attributes": [{"key": "site", "value": {"stringValue": "here"}}]}
    span = {"traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "b7ad6b7169203331", "name": "probe", "kind": 1,
            "startTimeUnixNano": now, "endTimeUnixNano": str(int(now) + 3_000_000_000)}
    for path, body in (
        ("metrics", {"resourceMetrics": [{"resource": resource, "scopeMetrics": [
            {"scope": {}, "metrics": [{"name": "interop.probe", "gauge": {"dataPoints": [point]}}]}]}]}),
        ("traces", {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {}, "spans": [span]}]}]}),
    ):
        get(f"{setup.telemetry.url('otlp_http')}/v1/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})


def look(setup, table):
    """The peers answer as they should before the agent is held against them."""
    table.about("the peers, asked by other clients")
    fleet = setup.fleet
    table.check("OpenSSH's client gets in by keyboard-interactive: hostd", "hostd is running.",
                ssh(setup, fleet.healthy, "/etc/init.d/hostd status"))
    table.check("a stopped service: ntpd", "ntpd is not running", ssh(setup, fleet.stopped, "/etc/init.d/ntpd status"))
    table.check("a script that prints another name: nsx-opsagent, after a line of noise",
                "opsAgent: log level is INFO / opsAgent is running",
                ssh(setup, fleet.slow, "/etc/init.d/nsx-opsagent status").replace("\n", " / "))
    table.check("a missing script: nsxa", "127", ssh(setup, fleet.healthy, "/etc/init.d/nsxa status 2>/dev/null; echo $?"))
    table.check("a host that takes keys only", "vpxa is running", ssh(setup, fleet.key_only, "/etc/init.d/vpxa status"))
    for vc in fleet.vcenters:
        table.check(f"{vc.name}: SOAP login and logout, certificate verified", "1 session, then 0",
                    soap_login_and_logout(setup, vc))
    send_probe(setup)
    probe = series("interop.probe", {"site": "here"})
    table.check("a point by OTLP reaches the Collector's file", 7,
                soon(lambda: setup.file.latest("interop.probe").get(probe)))
    probe = series("interop_probe", {"site": "here"})
    for way in ("exporter", "remote_write"):
        table.check(f"… and Prometheus by {way}", 7,
                    soon(lambda: setup.prometheus.latest("interop_probe", way).get(probe)))
    table.check("a span by OTLP reaches Jaeger", "probe",
                soon(lambda: [s[0] for s in setup.jaeger.spans("interop-probe", 3)] or None, first=True))


def soon(condition, seconds=20, first=False):
    try:
        answer, _ = wait_for("it", lambda: (lambda seen: None if seen is None else (seen,))(condition()), seconds)
        return answer[0][0] if first else answer[0]
    except NotInTime:
        return None
