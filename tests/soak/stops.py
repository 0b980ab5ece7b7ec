"""SIGTERM in the middle of each kind of load: the server ends within its drain time, with status 0
and no panic."""

import asyncio
import contextlib
import itertools

import mutated
import overload
import raw
import slow
import swaps
import vanish
from memory import BODY_FLAGS, BODY_MIB
from report import Row
from serving import END_SECONDS, Server, small_model
from wire import connect

DRAIN_SECONDS = 3
LOADED_SECONDS = 2
UPLOADS = 8


async def requests(trial):
    server = mutated.served(trial, drain=DRAIN_SECONDS)
    return server, mutated.load(server, trial.rng, itertools.count())


async def connections(trial):
    server = mutated.served(trial, drain=DRAIN_SECONDS)
    return server, raw.load(server.address, None, trial.rng, itertools.count())


async def swapped_files(trial):
    server, trials = await swaps.prepared(trial, 1 << 60, drain=DRAIN_SECONDS)
    return server, swaps.run(trials)


async def slow_connections(trial):
    server = Server(trial.binary, trial.folder, small_model(trial.binary, trial.folder / "slow"),
                    drain=DRAIN_SECONDS)
    tasks, _ = await slow.hold(server.address, trial.count(slow.CONNECTIONS))
    return server, asyncio.gather(*tasks)


async def read(clients):
    """All that comes. A writer that nobody keeps would close its connection."""
    await asyncio.gather(*(reader.read() for reader, _ in clients))
    return clients


async def generations(trial):
    server = vanish.served(trial, drain=DRAIN_SECONDS)
    clients = await vanish.begun(server, 100, False) + await vanish.begun(server, 100, True, 7000)
    return server, read(clients)


async def half_closed_generations(trial):
    server = vanish.served(trial, drain=DRAIN_SECONDS)
    clients = await vanish.begun(server, vanish.HALF_CLOSED, False)
    for _, writer in clients:
        writer.write_eof()
    return server, read(clients)


async def overloaded(trial):
    server = overload.served(trial, drain=DRAIN_SECONDS)
    clients = overload.TIMES * (overload.RUNNING + overload.WAITING)
    return server, overload.Load(server, impatient=True).run(clients, 3600)


async def uploads(trial):
    """Bodies of which a part comes every now and then."""
    model = small_model(trial.binary, trial.folder / "uploads")
    server = Server(trial.binary, trial.folder, model, *BODY_FLAGS, drain=DRAIN_SECONDS)

    async def upload():
        _, writer = await connect(server.address)
        size = BODY_MIB << 20
        writer.write(slow.HEAD + f"content-length: {size}\r\n\r\n".encode())
        while True:
            writer.write(b" " * (1 << 18))
            await writer.drain()
            await asyncio.sleep(0.1)

    return server, asyncio.gather(*(upload() for _ in range(UPLOADS)))


LOADS = (requests, connections, swapped_files, slow_connections, generations,
         half_closed_generations, overloaded, uploads)


async def stop(trial, begin):
    server, load = await begin(trial)
    task = asyncio.ensure_future(load)
    await asyncio.sleep(LOADED_SECONDS)
    seconds, status = await asyncio.to_thread(server.terminated)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task
    faults = server.panics()
    if seconds is None or seconds > DRAIN_SECONDS + END_SECONDS:
        faults.append(f"it took {seconds} s to end")
    elif status != 0:
        faults.append(f"it ended with status {status}")
    shown = "killed" if seconds is None else f"{seconds:.1f} s"
    name = begin.__name__.replace("_", " ")
    return Row(f"SIGTERM during {name}", f"drain of {DRAIN_SECONDS} s", f"status {status}",
               f"{shown} ({DRAIN_SECONDS + END_SECONDS})", faults)


async def part(trial):
    rows = []
    for begin in LOADS:
        trial.folder = trial.folder / begin.__name__
        trial.folder.mkdir()
        rows.append(await stop(trial, begin))
    return rows
