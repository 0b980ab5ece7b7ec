"""Mutated raw connections: what comes is cut, bent, slow, half-closed, of another protocol. Each is
answered or closed in time, an error is told in our JSON, and the server is well afterwards."""

import asyncio
import collections
import contextlib
import ssl
import time

import seeds
from mutated import served
from report import Faults, Row, counted
from serving import TLS_FLAGS, believing
from wire import Broken, connect, read_answer, reset

CONNECTIONS = 10_000
AT_ONCE = 100
# How long a client waits that has sent all and closed its side: the server has nothing to wait for.
CLOSED_SECONDS_MAX = 15
# How long one waits that leaves its side open, for one in PATIENT_EVERY: beyond every timeout of
# the server, by which it must have closed. Others wait QUIET_SECONDS.
PATIENT_EVERY = 40
PATIENT_SECONDS_MAX = 60
QUIET_SECONDS = 0.3
WAYS = ("at once", "in pieces", "slowly", "half-closed", "half-closed", "reset", "left", "unread")


class Sent:
    """What came of all connections."""

    def __init__(self):
        self.ends, self.faults = collections.Counter(), Faults()


async def send(rng, writer, data, way):
    """All of it, in one of the ways, or as much as the server takes."""
    if way == "in pieces":
        at = 0
        while at < len(data):
            size = rng.randrange(1, max(2, len(data) // 3))
            writer.write(data[at:at + size])
            await writer.drain()
            await asyncio.sleep(rng.random() * 0.01)
            at += size
    elif way == "slowly":
        for byte in data[:40]:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.01)
        writer.write(data[40:])
    else:
        writer.write(data)
    await writer.drain()


async def judge(sent, reader, data):
    """Reads answers to the end; each error must be told in our JSON."""
    if data.startswith(b"PRI * HTTP/2.0"):
        came = bytearray()
        try:
            while some := await reader.read(1 << 16):
                came += some
        finally:
            judge_frames(sent, came, data)
        return
    if data[:1] in (b"\x16", b"\x15") or not await begins_http(reader):
        await reader.read()
        return
    while (answer := await read_answer(reader)) is not None:
        sent.ends[answer.status] += 1
        if answer.status >= 500:
            sent.faults.add(f"status {answer.status} {answer.error_code()}", f"{data[:400]}")
        elif answer.status >= 400 and answer.error_code() is None:
            sent.faults.add(f"{answer.status} without our JSON", f"{data[:400]} {answer}")


async def begins_http(reader):
    """Whether what comes is HTTP/1: a TLS alert, or the frames of HTTP/2, are not."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        first = await reader.readexactly(5)
        reader._buffer[:0] = first
        return first == b"HTTP/"
    return False


def judge_frames(sent, came, data):
    """Of HTTP/2: a stream whose status is not of the table of good ones must have our JSON."""
    if came.startswith(b"HTTP/1"):
        return
    at, wrong, parts = 0, set(), collections.defaultdict(bytes)
    while at + 9 <= len(came):
        size = int.from_bytes(came[at:at + 3], "big")
        kind, stream = came[at + 3], int.from_bytes(came[at + 5:at + 9], "big")
        payload = came[at + 9:at + 9 + size]
        # 0x88 is status 200 in HPACK's static table, 0x89 204.
        if kind == seeds.HEADERS and payload[:1] not in (b"\x88", b"\x89", b""):
            wrong.add(stream)
        if kind == seeds.DATA:
            parts[stream] += payload
        at += 9 + size
    sent.ends["HTTP/2"] += 1
    for stream in wrong:
        if parts[stream] and b'"error":{' not in parts[stream]:
            sent.faults.add("HTTP/2 error without our JSON", f"{data[:300]} {parts[stream][:200]}")


async def one(sent, rng, address, tls):
    """A connection, from its first byte to its end."""
    kind = rng.choice(["http1"] * 6 + ["http2"] * 3 + ["tls", "noise"])
    data = {"http1": lambda: rng.choice(seeds.HTTP1), "http2": lambda: rng.choice(seeds.HTTP2),
            "tls": seeds.client_hello, "noise": lambda: rng.randbytes(rng.randrange(1, 3000))}
    data = data[kind]()
    data, way = seeds.mutate(rng, data), rng.choice(WAYS)
    spoken = tls and rng.random() < 0.6
    reader, writer = await connect(address)
    start = time.monotonic()
    limit = CLOSED_SECONDS_MAX
    try:
        if spoken:
            async with asyncio.timeout(limit):
                await writer.start_tls(tls)
        patient = rng.randrange(PATIENT_EVERY) == 0
        if way not in ("half-closed", "reset", "left", "unread") or spoken:
            limit = PATIENT_SECONDS_MAX if patient else QUIET_SECONDS
        async with asyncio.timeout(limit):
            await send(rng, writer, data, way)
            if way == "reset":
                return reset(writer)
            if way in ("left", "unread"):
                await asyncio.sleep(QUIET_SECONDS if way == "unread" else 0)
                return None
            if way == "half-closed" and not spoken:
                writer.write_eof()
            await judge(sent, reader, data)
    except TimeoutError:
        if limit >= CLOSED_SECONDS_MAX:
            sent.faults.add(f"hung ({way})", f"{time.monotonic() - start:.0f} s {data[:400]}")
    except Broken as error:
        sent.faults.add("broken answer", f"{error} {data[:400]}")
    except (OSError, ssl.SSLError):
        # The server has refused and closed while more was on its way.
        sent.ends["reset by the server"] += 1
    finally:
        writer.transport.abort()
    return None


async def load(address, tls, rng, left):
    """Mutated connections for as long as `left` gives numbers."""
    sent = Sent()

    async def some():
        while next(left, None) is not None:
            await one(sent, rng, address, tls)

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return sent


async def part(trial):
    rows = []
    for name, tls in (("mutated connections", None), ("mutated connections, TLS", believing())):
        count = trial.count(CONNECTIONS)
        server = served(trial, *(TLS_FLAGS if tls else ()), tls=tls)
        sent = await load(server.address, tls, trial.rng, iter(range(count)))
        faults = [*sent.faults, *await server.finished()]
        hangs = sum(n for kind, n in sent.faults.counts.items() if kind.startswith("hung"))
        fives = sum(n for status, n in sent.ends.items()
                    if isinstance(status, int) and status >= 500)
        rows.append(Row(name, f"{count:,} connections", counted(sent.ends),
                        f"{fives} × 5xx, {hangs} hangs (0, 0)", faults))
    return rows
