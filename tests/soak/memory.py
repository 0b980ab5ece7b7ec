"""Memory and names that are given back: loads, uses and unloads of adapters, and large bodies."""

import asyncio
import collections
import json
import statistics

from report import Faults, Row, counted
from serving import Server, small_model, synth
from wire import HANG_SECONDS, JSON, connect, read_answer

MIB = 1 << 20
LOADS = 1_000
ADAPTERS = 8
# Of memory, between the tenth of the cycles after the first tenth and the last one: allocators keep
# what was needed once. A leak of one adapter's config a cycle would be more.
GROWTH_MIB_MAX = 8
PAGE_GROWTH_BYTES_MAX = 2_000
BODIES, BODY_MIB = 8, 31
# Without it a server of a small model takes smaller ones alone.
BODY_FLAGS = ("--body-bytes-max", "32MiB")
BODIES_GROWTH_MIB_MAX = 64
ROUNDS = 3
# Until what was freed must be back.
BACK_SECONDS = 10


async def cycle(client, number, faults):
    """Loads an adapter under a name that was never there, asks it, and unloads it."""
    name = f"cycle-{number}"
    asked = [("/v1/load_lora_adapter", {"lora_name": name, "lora_path": f"a{number % ADAPTERS}"}),
             ("/v1/completions", {"model": name, "prompt": "The fox", "max_tokens": 4}),
             ("/v1/unload_lora_adapter", {"lora_name": name})]
    for path, body in asked:
        answer = await client.post(path, body)
        if answer.status != 200:
            faults.add(f"{path} was answered {answer.status}", answer)


async def page_bytes(server):
    async with server.client() as client:
        return len((await client.get("/metrics")).body)


async def adapters(trial):
    model = small_model(trial.binary, trial.folder / "model")
    root = trial.folder / "root"
    root.mkdir()
    for number in range(ADAPTERS):
        synth(trial.binary, "adapter", root / f"a{number}", "--model", model, "--kind", "lora",
              "--seed", number)
    server = Server(trial.binary, trial.folder, model, "--allow-runtime-adapters",
                    "--adapter-root", root)
    count, faults, memory, pages = max(20, trial.count(LOADS)), Faults(), [], []
    async with server.client() as client:
        for number in range(count):
            await cycle(client, number, faults)
            memory.append(server.memory() / MIB)
            if number in (count // 10, count - 1):
                pages.append(await page_bytes(server))
    tenth = count // 10
    early = statistics.median(memory[tenth:2 * tenth])
    late = statistics.median(memory[-tenth:])
    page = await server.metrics()
    left = {name: page[f"tessera:{name}"]
            for name in ("adapters_loaded", "adapters_bytes", "adapters_resident")}
    if any(left.values()):
        faults.add("gauges are not back at 0", left)
    if late - early > GROWTH_MIB_MAX:
        faults.add("memory grew", f"{early:.1f} to {late:.1f} MiB")
    if pages[1] - pages[0] > PAGE_GROWTH_BYTES_MAX:
        faults.add("/metrics grew", f"{pages[0]:,} to {pages[1]:,} bytes")
    return [Row("load, use, unload", f"{count:,} adapters, each under a name of its own",
                f"memory {early:.1f} → {late:.1f} MiB (medians of the second and the last tenth), "
                f"/metrics {pages[0]:,} → {pages[1]:,} bytes",
                f"{late - early:+.1f} MiB ({GROWTH_MIB_MAX})",
                [*faults, *await server.finished()])]


def large_bodies():
    """31 MiB each: a long text, many ids, many fields, much nothing; for the last three there is a
    value that holds no more than it must."""
    size = BODY_MIB * MIB - 200
    texts = [
        json.dumps({"prompt": "x" * (size - 20)}), json.dumps({"prompt": "é" * (size // 7)}),
        json.dumps({"prompt": [7] * (size // 3 - 20)}),
        json.dumps({"prompt": ["a"] * (size // 5 - 20)}),
        json.dumps({"prompt": "a", "user": [[]] * (size // 4 - 20)}),
        json.dumps({"messages": [{"role": "user", "content": "x" * (size - 60)}]}),
        json.dumps({"prompt": "a", "x": {str(i): 1 for i in range(size // 14)}}),
        '{"prompt":"a","max_tokens":1' + " " * (size - 40) + "}"]
    paths = ["/v1/completions"] * 5 + ["/v1/chat/completions"] + ["/v1/completions"] * 2
    return list(zip(paths, texts))


async def upload(server, path, text, statuses):
    """Sends it until there is room: some of that is kept for small bodies."""
    while await uploaded(server, path, text.encode(), statuses) == 503:
        await asyncio.sleep(0.5)


async def uploaded(server, path, body, statuses):
    reader, writer = await connect(server.address)
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{JSON}content-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    async with asyncio.timeout(HANG_SECONDS):
        status = (await read_answer(reader)).status
    statuses.append(status)
    writer.transport.abort()
    return status


async def bodies(trial):
    model = small_model(trial.binary, trial.folder / "model")
    server = Server(trial.binary, trial.folder, model, *BODY_FLAGS)
    faults, peak = Faults(), 0
    async with server.client() as client:
        await client.post("/v1/completions", {"prompt": "The fox", "max_tokens": 4})
    start, statuses = server.memory(), []
    large = large_bodies()
    for _ in range(ROUNDS):
        tasks = asyncio.gather(*(upload(server, path, text, statuses) for path, text in large))
        while not tasks.done():
            peak = max(peak, server.memory())
            await asyncio.sleep(0.02)
        await tasks
    for _ in range(BACK_SECONDS * 10):
        end = server.memory()
        if end - start < BODIES_GROWTH_MIB_MAX * MIB:
            break
        await asyncio.sleep(0.1)
    else:
        faults.add("memory is not given back", f"{start / MIB:.0f} to {end / MIB:.0f} MiB")
    for status in statuses:
        if status not in (200, 400, 503):
            faults.add(f"a body was answered {status}")
    return [Row("large bodies", f"{ROUNDS} times {BODIES} × {BODY_MIB} MiB at once",
                f"memory {start / MIB:.0f} → {peak / MIB:.0f} → {end / MIB:.0f} MiB; "
                f"{counted(collections.Counter(statuses))}",
                f"{(end - start) / MIB:+.0f} MiB ({BODIES_GROWTH_MIB_MAX})",
                [*faults, *await server.finished(fine=(503,))])]
