"""What arrived: in the Collector's files, in Prometheus, in Jaeger. Every series comes as (name, labels) → value."""
import json
import re
import urllib.parse

from .processes import get
from .telemetry import RECEIVED

NO_RECORDED_VALUE = 1           # the flag of a point that ends its series


def series(name, labels):
    return name, tuple(sorted(labels.items()))


def any_value(value):
    return next(iter(value.values())) if value else None


class CollectorFile:
    """The file exporter's metrics, read on as they come."""

    def __init__(self):
        self.path = RECEIVED / "metrics.jsonl"
        self.offset = 0
        self.points = []        # (name, labels, value or None at the series' end, unix time)
        self.services = set()   # service.name of every resource
        self.scopes = set()

    def read(self):
        if not self.path.exists():
            return self
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break       # still being written
                self.offset += len(line)
                self._take(json.loads(line))
        return self

    def _take(self, batch):
        for resource in batch.get("resourceMetrics", []):
            attributes = {a["key"]: any_value(a["value"]) for a in resource.get("resource", {}).get("attributes", [])}
            self.services.add(attributes.get("service.name"))
            for scope in resource.get("scopeMetrics", []):
                self.scopes.add(scope.get("scope", {}).get("name", ""))
                for metric in scope.get("metrics", []):
                    for kind in ("gauge", "sum"):
                        for point in metric.get(kind, {}).get("dataPoints", []):
                            self._take_point(metric["name"], point)

    def _take_point(self, name, point):
        labels = {a["key"]: str(any_value(a["value"])) for a in point.get("attributes", [])}
        value = float(point.get("asDouble", point.get("asInt", 0)))
        if int(point.get("flags", 0)) & NO_RECORDED_VALUE:
            value = None
        self.points.append((name, tuple(sorted(labels.items())), value, int(point["timeUnixNano"]) / 1e9))

    def latest(self, name):
        """series → value, of those whose end has not been said."""
        now = {}
        for point_name, labels, value, _ in self.read().points:
            if point_name == name:
                now[point_name, labels] = value
        return {key: value for key, value in now.items() if value is not None}


class Prometheus:
    # What Prometheus itself puts on: job and instance of the scrape, and `way`, ours.
    # Both ways through the Collector also carry the resource's identity.
    OWN = {"scrape": {"job", "instance", "way"},
           "exporter": {"job", "instance", "way", "exported_job", "exported_instance"},
           "remote_write": {"job", "instance", "way"}}

    def __init__(self, url):
        self.url = url

    def query(self, expression):
        answer = get(f"{self.url}/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        return json.loads(answer)["data"]["result"] if answer else []

    def latest(self, name, way):
        now = {}
        for row in self.query(f'{name}{{way="{way}"}}'):
            labels = {k: v for k, v in row["metric"].items() if k not in self.OWN[way] | {"__name__"}}
            now[series(name, labels)] = float(row["value"][1])
        return now

    def sum(self, expression):
        """The sum over everything that the expression selects, 0 where there is nothing."""
        return sum(float(row["value"][1]) for row in self.query(expression))


class Jaeger:
    def __init__(self, url):
        self.url = url

    def services(self):
        answer = get(f"{self.url}/api/services")
        return (json.loads(answer)["data"] or []) if answer else []

    def spans(self, service, at_least):
        """(name, seconds, tags) of the spans of `service` that took at least so many seconds."""
        query = urllib.parse.urlencode({"service": service, "minDuration": f"{int(at_least * 1000)}ms",
                                        "limit": 200, "lookback": "1h"})
        answer = get(f"{self.url}/api/traces?{query}")
        found = []
        for trace in json.loads(answer)["data"] if answer else []:
            for span in trace["spans"]:
                if span["duration"] / 1e6 >= at_least:
                    tags = {t["key"]: str(t["value"]) for t in span["tags"]}
                    found.append((span["operationName"], span["duration"] / 1e6, tags))
        return found


LINE = re.compile(r'^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)')
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def scraped(url):
    """One page in Prometheus's text format: series → value; None as long as nobody answers."""
    page = get(url)
    if page is None:
        return None
    found = {}
    for line in page.splitlines():
        match = LINE.match(line)
        if match:
            found[series(match[1], dict(LABEL.findall(match[2] or "")))] = float(match[3])
    return found
