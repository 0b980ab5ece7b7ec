"""Clients that vanish while the server works for them: it stops within 0.2 s, however they left.
Those that only close their own side get their whole answer."""

import asyncio
import json
import time

import seeds
from report import Faults, Row
from serving import RUNNING, TLS_FLAGS, WAITING, Server, believing, small_model, sums
from wire import HANG_SECONDS, Broken, connect, message, read_answer, reset

CLIENTS = 200
GAUGES_SECONDS_MAX = 0.2
# After the last client has left, until it is called a fault of another kind.
GIVEN_UP_SECONDS = 60
HALF_CLOSED = 64
TOKENS = 8000
ANSWER_TOKENS = 400


async def close(writer):
    writer.close()


async def reset_it(writer):
    reset(writer)


async def stray_byte(writer):
    writer.write(b"x")
    writer.close()


async def pipelined(writer):
    writer.write(message("GET", "/v1/models"))
    writer.close()


async def half_closed(writer):
    writer.write_eof()
    await asyncio.sleep(0.1)
    writer.close()


# What a client of TLS or HTTP/2 can do of these: neither knows of one side that is closed alone.
ENCRYPTED = ("close", "RST", "a stray byte", "a pipelined request")
FRAMED = ("close", "RST")
WAYS = {"close": close, "RST": reset_it, "a stray byte": stray_byte,
        "a pipelined request": pipelined, "shutdown, close 0.1 s later": half_closed}


def asking(i, streamed, tokens):
    return {"prompt": f"The fox {i}", "max_tokens": tokens, "ignore_eos": True,
            "stream": streamed}


def framed(body):
    """The request in HTTP/2."""
    return seeds.http2(seeds.http2_post(json.dumps(body).encode(), 1))


def plain(body):
    return message("POST", "/v1/completions", body)


async def begun(server, count, streamed, tokens=TOKENS, written=plain):
    """So many clients, once all their sequences run or wait."""
    clients = []
    for i in range(count):
        reader, writer = await connect(server.address)
        if server.tls:
            await writer.start_tls(server.tls)
        writer.write(written(asking(i, streamed, tokens)))
        clients.append((reader, writer))
    async with server.client() as client:
        until = time.monotonic() + GIVEN_UP_SECONDS
        while await busy(client) < count:
            assert time.monotonic() < until, "the sequences never came to the engine"
            await asyncio.sleep(0.02)
    return clients


async def busy(client):
    page = sums((await client.get("/metrics")).body.decode())
    return page[RUNNING] + page[WAITING]


async def gone_seconds(server, clients, way):
    """Until nothing runs or waits, from when the last client has left."""
    async with server.client() as client:
        await client.get("/live")
        await asyncio.gather(*(way(writer) for _, writer in clients))
        start = time.monotonic()
        while await busy(client):
            if time.monotonic() - start > GIVEN_UP_SECONDS:
                return GIVEN_UP_SECONDS
            await asyncio.sleep(0.005)
        return time.monotonic() - start


async def vanish(server, count, name, streamed, written=plain):
    await server.settled(GIVEN_UP_SECONDS)
    clients = await begun(server, count, streamed, written=written)
    seconds = await gone_seconds(server, clients, WAYS[name])
    faults = Faults()
    if seconds > GAUGES_SECONDS_MAX:
        faults.add("the engine went on", f"for {seconds:.2f} s")
    kind = ", ".join(["streamed" if streamed else "whole", *["TLS"] * bool(server.tls),
                      *["HTTP/2"] * (written is framed)])
    return Row(f"clients vanish: {name}, {kind}", f"{count} clients", "running and waiting at 0",
               f"{seconds:.2f} s ({GAUGES_SECONDS_MAX})", faults)


async def still_reads(server, streamed):
    """A client that has said all it will say is answered to the end."""
    await server.settled(GIVEN_UP_SECONDS)
    clients = await begun(server, HALF_CLOSED, streamed, ANSWER_TOKENS)
    faults, whole = Faults(), 0
    for _, writer in clients:
        writer.write_eof()
    for reader, writer in clients:
        try:
            async with asyncio.timeout(HANG_SECONDS):
                answer = await read_answer(reader)
        except (Broken, OSError, TimeoutError) as error:
            answer = f"{type(error).__name__} {error}"
        if is_whole(answer, streamed):
            whole += 1
        else:
            faults.add("no whole answer", answer)
        writer.close()
    kind = "streamed" if streamed else "whole"
    return Row(f"clients close their side and read, {kind}", f"{HALF_CLOSED} clients",
               f"{whole} whole answers", f"{whole} of {HALF_CLOSED}", faults)


def is_whole(answer, streamed):
    if getattr(answer, "status", None) != 200:
        return False
    if streamed:
        return answer.events()[-1:] == [b"[DONE]"]
    return answer.json()["usage"]["completion_tokens"] == ANSWER_TOKENS


def served(trial, *more, **others):
    model = trial.folder / "vanish"
    if not model.exists():
        small_model(trial.binary, model)
    return Server(trial.binary, trial.folder, model, *more, **others)


async def part(trial):
    server = served(trial)
    count, rows = min(500, trial.count(CLIENTS)), []
    for streamed in (False, True):
        rows += [await vanish(server, count, name, streamed) for name in WAYS]
        rows += [await vanish(server, count, name, streamed, framed) for name in FRAMED]
        rows.append(await still_reads(server, streamed))
    rows[-1].faults += await server.finished()
    server = served(trial, *TLS_FLAGS, tls=believing())
    for streamed in (False, True):
        rows += [await vanish(server, count, name, streamed) for name in ENCRYPTED]
    rows[-1].faults += await server.finished()
    return rows
