"""Thousands of connections that are idle or slow: /health answers as if they were not there, and
completions are served."""

import asyncio
import contextlib
import json

from probe import probe
from report import Faults, Row, percentile
from serving import Server, small_model
from wire import Broken, Hung, connect, message

CONNECTIONS = 2_000
# More than the server has places for (4096): the idle and slow ones go, and these come again.
BEYOND = 5_000
SECONDS = 60
# Of them, streams that nobody reads: fewer than run at once, as these hold places of the engine.
STREAMS_MAX = 40
DRIP_SECONDS = 1
AGAIN_SECONDS = 2
HEALTH_P99_MS_MAX = 50
# Answers that nobody reads fill the kernel's buffers, and then the server's.
UNREAD_RECEIVE_BYTES = 4096
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
BODY = json.dumps({"prompt": "The fox", "max_tokens": 4}).encode()


async def idle(_writer):
    await asyncio.sleep(3600)


async def half_a_head(writer):
    writer.write(HEAD[:60])
    await asyncio.sleep(3600)


async def dripping_head(writer):
    await drip(writer, HEAD + b"x: " + b"y" * 10_000)


async def dripping_body(writer):
    writer.write(HEAD + b"content-length: 100000\r\n\r\n")
    await drip(writer, BODY + b" " * 100_000)


async def unread(writer):
    writer.write(message("GET", "/openapi.json") * 20)
    await asyncio.sleep(3600)


async def unread_stream(writer):
    body = {"prompt": "The fox", "max_tokens": 4000, "ignore_eos": True, "stream": True,
            "logprobs": 5}
    writer.write(message("POST", "/v1/completions", body))
    await asyncio.sleep(3600)


async def drip(writer, data):
    for byte in data:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(DRIP_SECONDS)


KINDS = (idle, half_a_head, dripping_head, dripping_body, unread)
UNREAD = (unread, unread_stream)


async def held(address, kind, opened):
    """One connection of a kind, opened again whenever the server has closed it."""
    while True:
        with contextlib.suppress(OSError, Broken):
            small = UNREAD_RECEIVE_BYTES if kind in UNREAD else None
            reader, writer = await connect(address, small)
            opened.append(kind.__name__)
            pushing = asyncio.ensure_future(kind(writer))
            try:
                if kind in UNREAD:
                    await pushing
                while await reader.read(1 << 16):
                    pass
            finally:
                pushing.cancel()
                writer.transport.abort()
        await asyncio.sleep(AGAIN_SECONDS)


async def hold(address, count):
    """The tasks that hold so many connections, once all have been opened."""
    opened = []
    kinds = [KINDS[i % len(KINDS)] for i in range(count)]
    kinds[:STREAMS_MAX] = [unread_stream] * min(STREAMS_MAX, count // len(KINDS))
    tasks = [asyncio.ensure_future(held(address, kind, opened)) for kind in kinds]
    async with asyncio.timeout(60):
        while len(opened) < count:
            await asyncio.sleep(0.05)
    return tasks, opened


async def let_go(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def complete(server, faults, done):
    """Asks as a client that is not slow, until it is cancelled."""
    async with server.client() as client:
        while True:
            try:
                answer = await client.post("/v1/completions", {"prompt": "The fox",
                                                               "max_tokens": 8})
                if answer.status == 200:
                    done.append(1)
                else:
                    faults.add(f"a completion was answered {answer.status}", answer)
            except (Hung, Broken, OSError) as error:
                faults.add(f"a completion: {type(error).__name__}", error)
            await asyncio.sleep(0.25)


async def part(trial):
    model = small_model(trial.binary, trial.folder / "model")
    rows = [await beside(trial, model, "idle and slow connections", CONNECTIONS),
            await beside(trial, model, "more connections than places", BEYOND,
                         fine=(503,))]
    return rows


async def beside(trial, model, name, whole, fine=()):
    """What new connections get beside so many; `fine` are answers to those without a place."""
    server = Server(trial.binary, trial.folder, model)
    count, faults, done = trial.count(whole), Faults(), []
    tasks, opened = await hold(server.address, count)
    asking = asyncio.ensure_future(complete(server, faults, done))
    health = await probe(server.address, max(5, SECONDS * min(1, trial.scale)))
    await let_go([*tasks, asking])
    wrong = [status for _, status in health if status != 200]
    if wrong:
        faults.add(f"{len(wrong)} of /health were not 200", wrong[:10])
    p99 = 1000 * percentile([seconds for seconds, _ in health], 0.99)
    if p99 >= HEALTH_P99_MS_MAX:
        faults.add("/health was slow", f"p99 {p99:.1f} ms")
    if not done:
        faults.add("no completion was served")
    return Row(name, f"{count:,} at once, {len(opened):,} in all",
               f"{len(health):,} × /health, {len(done)} completions meanwhile",
               f"/health p99 {p99:.1f} ms ({HEALTH_P99_MS_MAX})",
               [*faults, *await server.finished(fine)])
