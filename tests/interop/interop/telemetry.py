"""The receiving side: OpenTelemetry Collector, Jaeger, Prometheus."""
import os
from pathlib import Path

from .processes import CACHE, RUN, free_port, get, listens, wait_for

HERE = Path(__file__).resolve().parent.parent
RECEIVED = RUN / "received"

PROMETHEUS_CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
storage: {{tsdb: {{out_of_order_time_window: 24h}}}}      # at least otlp.spool.max_age
scrape_configs:
  - job_name: agent             # the agent's own /metrics
    static_configs: [{{targets: ["127.0.0.1:{agent}"], labels: {{way: scrape}}}}]
  - job_name: exporter          # what the Collector's prometheusexporter makes of the pushed points
    static_configs: [{{targets: ["127.0.0.1:{exporter}"], labels: {{way: exporter}}}}]
  - job_name: otelcol           # the Collector's telemetry about itself
    static_configs: [{{targets: ["127.0.0.1:{collector_telemetry}"]}}]
"""


class Telemetry:
    NAMES = ("otlp_grpc", "otlp_http", "exporter", "collector_telemetry", "prometheus",
             "jaeger_otlp", "jaeger_query", "jaeger_admin", "agent", "plain_grpc")

    def __init__(self, processes):
        self.processes = processes
        self.port = {}
        while len(set(self.port.values())) < len(self.NAMES):
            self.port = {name: free_port() for name in self.NAMES}
        self.collector_process = None

    def url(self, name):
        return f"http://127.0.0.1:{self.port[name]}"

    def start(self):
        RECEIVED.mkdir()
        jaeger = self._start_jaeger()
        prometheus = self._start_prometheus()
        self.processes.started(jaeger, [("127.0.0.1", self.port[p]) for p in ("jaeger_otlp", "jaeger_query")])
        self.processes.started(prometheus, [("127.0.0.1", self.port["prometheus"])])
        wait_for("Prometheus is ready", lambda: get(self.url("prometheus") + "/-/ready"), 30)
        self.start_collector()      # last: it complains while those to whom it hands on are not there

    def start_collector(self):
        where = {name: f"127.0.0.1:{port}" for name, port in self.port.items()}
        env = {"PATH": os.environ["PATH"], "RECEIVED": str(RECEIVED), "OTLP_GRPC": where["otlp_grpc"],
               "OTLP_HTTP": where["otlp_http"], "EXPORTER": where["exporter"], "PROMETHEUS": where["prometheus"],
               "JAEGER_OTLP": where["jaeger_otlp"], "TELEMETRY_PORT": str(self.port["collector_telemetry"])}
        self.collector_process = self.processes.start(
            "otelcol", [CACHE / "bin/otelcol", "--config", HERE / "collector/otelcol.yaml"], env=env)
        self.processes.started(self.collector_process, [
            ("127.0.0.1", self.port[p]) for p in ("otlp_grpc", "otlp_http", "exporter", "collector_telemetry")])

    def start_plain_collector(self):
        place = ("127.0.0.1", self.port["plain_grpc"])
        if listens(*place):     # the new one would end, and whoever kills it would kill nobody
            raise RuntimeError("a plain Collector is still there")
        env = {"PATH": os.environ["PATH"], "PLAIN_GRPC": f"127.0.0.1:{self.port['plain_grpc']}",
               "PROMETHEUS": f"127.0.0.1:{self.port['prometheus']}"}
        process = self.processes.start(
            "otelcol-plain", [CACHE / "bin/otelcol", "--config", HERE / "collector/plain.yaml"], env=env)
        return self.processes.started(process, [place])

    def stop_collector(self):
        self.processes.end(self.collector_process)

    def _start_jaeger(self):
        on = "127.0.0.1:{}".format
        unused = {flag: on(free_port()) for flag in (
            "collector.grpc-server.host-port", "collector.http-server.host-port", "collector.otlp.http.host-port",
            "query.grpc-server.host-port", "http-server.host-port")}
        udp = {flag: on(0) for flag in ("processor.jaeger-binary.server-host-port",
                                        "processor.jaeger-compact.server-host-port",
                                        "processor.zipkin-compact.server-host-port")}
        flags = {**unused, **udp,
                 "collector.otlp.grpc.host-port": on(self.port["jaeger_otlp"]),
                 "query.http-server.host-port": on(self.port["jaeger_query"]),
                 "admin.http.host-port": on(self.port["jaeger_admin"])}
        env = {"PATH": os.environ["PATH"], "COLLECTOR_OTLP_ENABLED": "true", "SPAN_STORAGE_TYPE": "memory"}
        return self.processes.start(
            "jaeger", [CACHE / "bin/all-in-one", *(f"--{k}={v}" for k, v in flags.items())], env=env)

    def _start_prometheus(self):
        config = RUN / "prometheus.yml"
        config.write_text(PROMETHEUS_CONFIG.format(**self.port))
        return self.processes.start("prometheus", [
            CACHE / "debian/usr/bin/prometheus", f"--config.file={config}", f"--storage.tsdb.path={RUN / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.port['prometheus']}", "--web.enable-remote-write-receiver",
            f"--web.console.templates={RUN}", f"--web.console.libraries={RUN}"])
