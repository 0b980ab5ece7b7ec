"""A server under trial: how it is started, what it says of itself, and whether it was well at its
end."""

import asyncio
import os
import re
import resource
import ssl
import subprocess
import sys
import time
from pathlib import Path

from wire import Client

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/clients"))
import harness  # noqa: E402  (it stands in a folder of its own)

CERTIFICATE = ROOT / "tests/data/tls/one.pem"
TLS_FLAGS = ("--ssl-certfile", CERTIFICATE, "--ssl-keyfile", ROOT / "tests/data/tls/one.key")
DEMO, ADAPTERS = harness.DEMO, harness.ADAPTERS
DRAIN_SECONDS = 10
# Beyond the drain: to close what is open, give back memory and end, on a busy machine.
END_SECONDS = 3
# What ended a moment ago may be in a gauge still.
SETTLED_SECONDS = 10
# What a service gets where nobody raised it; the server raises it itself.
USUAL_FILES = 1024
# Names that a page of metrics has once or several times, with its labels.
SERIES = re.compile(r"^(\S+?)(\{.*\})? (\S+)$", re.MULTILINE)
PANICS = re.compile(r"panicked at|stack overflow|SIGSEGV|RUST_BACKTRACE|memory allocation of")
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
GAUGES = (RUNNING, WAITING, "tessera:requests_in_flight", "tessera:http_requests_in_flight")


def limit_files(soft):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def allow_many_files():
    """As many as this process may have: each connection of a trial takes one."""
    limit_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def believing():
    """What a client needs for a server with TLS_FLAGS."""
    context = ssl.create_default_context(cafile=CERTIFICATE)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def synth(binary, *arguments):
    """Writes a model or an adapter of random weights."""
    subprocess.run([binary, "synth", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def small_model(binary, at, layers=2, hidden=64, context=8192):
    """A model that is fast to start; what it says is nonsense, and the same each time."""
    synth(binary, "model", at, "--layers", layers, "--hidden", hidden, "--intermediate",
          2 * hidden, "--heads", 2, "--vocab", 300, "--dtype", "f32")
    config = at / "config.json"
    config.write_text(config.read_text().replace(
        '"max_position_embeddings": 8192', f'"max_position_embeddings": {context}'))
    return at


def memory_bytes(pid):
    """What the process has in memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) * 1024


# Servers of the part under way: where that fails, nobody else would end them.
PROCESSES = []


def end_with_us(process):
    PROCESSES.append(process)


def kill_all():
    while PROCESSES:
        process = PROCESSES.pop()
        process.kill()
        process.wait()


class Server(harness.Server):
    """A server of one part. Its log is a file, which is looked through at its end."""

    def __init__(self, binary, folder, *arguments, drain=DRAIN_SECONDS,
                 tls=None):
        self.tls = tls
        self.log = folder / f"log-{time.monotonic_ns()}.txt"
        self.drain, self.faults = drain, []
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        limit_files(min(USUAL_FILES, soft))
        try:
            with self.log.open("w") as log:
                super().__init__(binary, *map(str, arguments), "--drain-seconds", str(drain),
                                 "--no-access-log", log=log)
        finally:
            limit_files(soft)
        end_with_us(self.process)
        self.host, port = re.search(r"//([^:/]+):(\d+)", self.url).groups()
        self.port = int(port)

    @property
    def address(self):
        return self.host, self.port

    def client(self):
        return Client(self.address, self.tls)

    def memory(self):
        return memory_bytes(self.process.pid)

    def is_alive(self):
        return self.process.poll() is None

    async def metrics(self):
        """The sum of each series, and of each status of answers as `status 200`."""
        async with self.client() as client:
            answer = await client.get("/metrics")
        assert answer.status == 200, answer
        return sums(answer.body.decode())

    async def settled(self, seconds=SETTLED_SECONDS):
        """The gauges that are not at rest after a while; the request that asks is one itself."""
        until = time.monotonic() + seconds
        while True:
            page = await self.metrics()
            at_rest = {name: name == "tessera:http_requests_in_flight" for name in GAUGES}
            busy = {name: page[name] for name in GAUGES if page[name] > at_rest[name]}
            if not busy or time.monotonic() > until:
                return [f"{name} is still {value:g}" for name, value in busy.items()]
            await asyncio.sleep(0.05)

    async def well(self, fine=()):
        """What is wrong with a server that nobody asks for anything any more. `fine` are the
        statuses from 500 on that the trial asked for."""
        if not self.is_alive():
            return [f"the server has ended with {self.process.returncode}"]
        faults = await self.settled()
        page = await self.metrics()
        faults += [f"{page[name]:g} of {name}" for name in page
                   if name.startswith("status 5") and int(name.split()[1]) not in fine]
        if page["tessera:failed_steps_total"]:
            faults.append(f"{page['tessera:failed_steps_total']:g} failed steps")
        async with self.client() as client:
            health = await client.get("/health")
        return faults + ([f"/health says {health.status}"] if health.status != 200 else [])

    def ended(self):
        """Ends it, as an operator does, and says what was wrong with that and in its log."""
        seconds, status = self.terminated()
        faults = []
        if seconds is None:
            faults.append("SIGTERM did not end it")
        elif status != 0:
            faults.append(f"it ended with status {status}")
        elif seconds > self.drain + END_SECONDS:
            faults.append(f"it ended {seconds:.1f} s after SIGTERM")
        return faults + self.panics()

    def terminated(self):
        """SIGTERM: after how many seconds it ended, or None, and with which status."""
        start = time.monotonic()
        self.process.terminate()
        try:
            status = self.process.wait(timeout=self.drain + 4 * END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return None, self.process.wait()
        return time.monotonic() - start, status

    def panics(self):
        lines = [line for line in self.log.read_text(errors="replace").splitlines()
                 if PANICS.search(line)]
        return [f"{len(lines)} panics: {lines[0][:200]}"] if lines else []

    async def finished(self, fine=()):
        """All that was wrong, at the end of a part."""
        faults = await self.well(fine)
        return faults + await asyncio.to_thread(self.ended)


def sums(page):
    found = {}
    for name, labels, value in SERIES.findall(page):
        if name.startswith("#"):
            continue
        found[name] = found.get(name, 0) + float(value)
        status = re.search(r'status="(\d+)"', labels)
        if status and name == "tessera:http_requests_total":
            key = f"status {status[1]}"
            found[key] = found.get(key, 0) + float(value)
    return found


def machine():
    """Cores and memory, for the report."""
    total = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1])
    return f"{os.cpu_count()} cores, {total / (1 << 20):.0f} GiB of memory"
