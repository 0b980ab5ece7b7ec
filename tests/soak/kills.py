"""kill -9 at random moments of the start and of work, and a start again: each succeeds, on the
port, the socket's file and the adapters of the one before."""

import asyncio
import contextlib
import socket
import subprocess
import time

from report import Faults, Row, percentile
from serving import ADAPTERS, DEMO, PANICS, end_with_us
from wire import Broken, Client, Hung, connect, message

KILLS = 1_000
READY_SECONDS_MAX = 30
# Requests under way when it is killed.
AT_WORK = 12
WORK_SECONDS_MAX = 0.3
BODY = {"prompt": "The fox eats", "max_tokens": 12, "temperature": 0}


class Again:
    """A server that is started on what the one before left."""

    def __init__(self, trial, kind):
        self.trial, self.kind, self.start_seconds = trial, kind, 1.0
        self.log = trial.folder / f"{kind}.txt"
        self.path = trial.folder / "s.sock"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = free.getsockname()
        where = ("--uds", str(self.path)) if kind == "a Unix socket" else \
            ("--port", str(self.address[1]))
        adapters = [flag for name in ADAPTERS
                    for flag in ("--adapter", f"{name}={DEMO / 'adapters' / name}")]
        self.command = [trial.binary, "serve", str(DEMO / "model"), "--served-model-name", "demo",
                        "--no-access-log", *adapters, *where]

    def spawn(self):
        with self.log.open("w") as log:
            process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=log, text=True)
        end_with_us(process)
        return process

    def ready(self, process):
        """Seconds until it says that it is ready, or None."""
        start = time.monotonic()
        for line in process.stdout:
            if line.startswith("ready: "):
                return time.monotonic() - start
        return None

    async def asked(self, number):
        """The text of an answer: it must be the same after each start."""
        name = ("demo", *ADAPTERS)[number % (1 + len(ADAPTERS))]
        async with Client(self.where()) as client:
            answer = await client.post("/v1/completions", {**BODY, "model": name})
        assert answer.status == 200, answer
        return name, answer.json()["choices"][0]["text"]

    def where(self):
        return str(self.path) if self.kind == "a Unix socket" else self.address


async def work(again):
    """Requests that will not be answered."""
    for i in range(AT_WORK):
        with contextlib.suppress(OSError):
            _, writer = await connect(again.where())
            body = {**BODY, "max_tokens": 200, "ignore_eos": True, "stream": i % 2 == 0,
                    "model": ("demo", *ADAPTERS)[i % 6]}
            writer.write(message("POST", "/v1/completions", body))


async def kill_at_start(again, rng):
    """A start that does not get to its end, or just."""
    process = again.spawn()
    await asyncio.sleep(rng.random() * 1.2 * again.start_seconds)
    process.kill()
    await asyncio.to_thread(process.wait)
    process.stdout.close()


async def kill_at_work(again, rng, number, said, faults):
    """A start that must succeed; seconds that it took."""
    process = again.spawn()
    seconds = await asyncio.wait_for(asyncio.to_thread(again.ready, process), READY_SECONDS_MAX)
    if seconds is None:
        faults.add("a start failed", again.log.read_text(errors="replace")[-400:])
    else:
        try:
            name, text = await again.asked(number)
            if said.setdefault(name, text) != text:
                faults.add("another answer after a start", f"{name}: {text!r}, not {said[name]!r}")
            await work(again)
            await asyncio.sleep(rng.random() * WORK_SECONDS_MAX)
        except (Broken, Hung, OSError, AssertionError) as error:
            faults.add("no answer after a start", error)
    process.kill()
    await asyncio.to_thread(process.wait)
    process.stdout.close()
    if PANICS.search(again.log.read_text(errors="replace")):
        faults.add("panic", again.log.read_text(errors="replace")[-400:])
    return seconds


async def part(trial):
    rows = []
    for kind in ("a port", "a Unix socket"):
        again, faults, said, starts = Again(trial, kind), Faults(), {}, []
        kills = max(4, trial.count(KILLS) // 2)
        for number in range(kills // 2):
            seconds = await kill_at_work(again, trial.rng, number, said, faults)
            if seconds is not None:
                starts.append(seconds)
                again.start_seconds = percentile(starts, 0.5)
            await kill_at_start(again, trial.rng)
        rows.append(Row(f"kill -9 and start, {kind}", f"{kills // 2 * 2:,} kills, half of them "
                        "while it started", f"a start takes {percentile(starts, 0.5):.2f} s "
                        f"(median), {max(starts):.2f} s at most",
                        f"{len(starts):,} of {kills // 2:,} starts", faults))
    return rows
