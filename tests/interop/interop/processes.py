"""Starting and ending programs, and waiting for conditions."""
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

RUN = Path(os.environ["RUN_DIR"])
CACHE = Path(os.environ["INTEROP_CACHE"])
LOGS = RUN / "log"


class NotInTime(Exception):
    pass


def wait_for(what, condition, seconds):
    """Returns the first true answer of `condition` and how long it took to come; never waits longer than `seconds`."""
    started = time.monotonic()
    while True:
        answer = condition()
        waited = time.monotonic() - started
        if answer:
            return answer, waited
        if waited > seconds:
            raise NotInTime(f"{what}: not within {seconds} s")
        time.sleep(0.05)


def free_port(addresses=("127.0.0.1",)):
    """A port that is free on all the addresses."""
    for _ in range(100):
        with socket.socket() as first:
            first.bind((addresses[0], 0))
            port = first.getsockname()[1]
        if all(is_free(address, port) for address in addresses):
            return port
    raise OSError("no port is free on all of " + " ".join(addresses))


def is_free(address, port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def listens(address, port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0


def get(url, data=None, headers=None):
    """The body of an HTTP answer as text, or None as long as nobody (well) answers."""
    request = urllib.request.Request(url, data=data, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return None


class Processes:
    """Every program of the run; `end_all` ends what still runs, the last started first."""

    def __init__(self):
        self.running = []
        LOGS.mkdir(parents=True, exist_ok=True)

    def start(self, name, argv, env=None, stdout=None):
        log = open(LOGS / f"{name}.log", "ab")
        out = open(stdout, "wb") if stdout else log
        process = subprocess.Popen(
            [str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=log,
            env=env, cwd=RUN, start_new_session=True)
        process.name = name
        self.running.append(process)
        return process

    def started(self, process, listening, seconds=30):
        """Waits until the program listens on all of these (address, port); says so when it ended instead."""
        def up():
            if process.poll() is not None:
                tail = (LOGS / f"{process.name}.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{process.name} ended with {process.returncode}:\n{tail}")
            return all(listens(*place) for place in listening)
        wait_for(f"{process.name} listens", up, seconds)
        return process

    def end(self, process, seconds=10):
        """SIGTERM, and SIGKILL for its whole group after `seconds`. Returns exit code and how long it took."""
        started = time.monotonic()
        if process.poll() is None:
            process.terminate()
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        took = time.monotonic() - started
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait(10)
        if process in self.running:
            self.running.remove(process)
        return code, took

    def end_all(self):
        for process in reversed(list(self.running)):
            self.end(process, 3)
