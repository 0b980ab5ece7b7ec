"""Ten times as many clients as the server runs and keeps waiting: what it finishes does not get
less, and who is refused is told when to come again."""

import asyncio
import time

from report import Faults, Row, counted
from serving import Server, small_model
from wire import Broken, Hung

RUNNING, WAITING = 8, 8
TIMES = 10
ROUNDS, SECONDS = 3, 10
WARM_SECONDS = 2
TOKENS = 32
GOODPUT_SHARE_MIN = 0.9
# How soon a client comes again that does not listen to Retry-After.
IMPATIENT_SECONDS = 0.1


class Load:
    """Clients that ask again and again. Tokens count if their answer came whole within the time
    that is measured."""

    def __init__(self, server, impatient=False):
        self.server, self.impatient = server, impatient
        self.tokens, self.statuses, self.faults = 0, {}, Faults()

    async def client(self, number):
        async with self.server.client() as client:
            while True:
                body = {"prompt": f"The fox {number}", "max_tokens": TOKENS, "ignore_eos": True}
                try:
                    answer = await client.post("/v1/completions", body)
                except (Hung, Broken, OSError) as error:
                    self.faults.add(type(error).__name__, error)
                    continue
                await self.judge(answer)

    async def judge(self, answer):
        self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
        if answer.status == 200:
            self.tokens += answer.json()["usage"]["completion_tokens"]
            return
        after = answer.headers.get("retry-after", "")
        if answer.status not in (429, 503) or not after.isdigit() or int(after) < 1:
            self.faults.add(f"refused with {answer.status}, Retry-After {after!r}", answer)
        wait = int(after) if after.isdigit() and not self.impatient else IMPATIENT_SECONDS
        await asyncio.sleep(wait)

    async def run(self, clients, seconds):
        """Tokens a second."""
        tasks = [asyncio.ensure_future(self.client(i)) for i in range(clients)]
        await asyncio.sleep(WARM_SECONDS)
        self.tokens, start = 0, time.monotonic()
        await asyncio.sleep(seconds)
        rate = self.tokens / (time.monotonic() - start)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return rate


def served(trial, **others):
    """A model whose steps take longer than to answer; a core is left to the clients."""
    model = small_model(trial.binary, trial.folder / "overload", layers=8, hidden=256)
    return Server(trial.binary, trial.folder, model, "--max-num-seqs", RUNNING,
                  "--queue-requests", WAITING, "--threads", 1, **others)


async def part(trial):
    server, rows = served(trial), []
    seconds = max(3, SECONDS * min(1, trial.scale))
    capacity = RUNNING + WAITING
    for impatient in (False, True):
        load, alone, beyond = Load(server, impatient), [], []
        # Turn by turn: the machine is not equally fast all the time.
        for _ in range(ROUNDS):
            alone.append(await Load(server).run(capacity, seconds))
            await server.settled()
            beyond.append(await load.run(TIMES * capacity, seconds))
            await server.settled()
        share = sum(beyond) / max(1, sum(alone))
        if share < GOODPUT_SHARE_MIN:
            load.faults.add("goodput fell", f"{beyond} of {alone} tokens/s")
        who = f"tries again after {IMPATIENT_SECONDS} s" if impatient else "waits as told"
        rows.append(Row(f"{TIMES} × overload, who is refused {who}",
                        f"{TIMES * capacity} clients, room for {capacity}",
                        f"{sum(beyond) / ROUNDS:.0f} tokens/s of {sum(alone) / ROUNDS:.0f}; "
                        f"{counted(load.statuses)}", f"{share:.0%} (90 %)", load.faults))
    rows[-1].faults += await server.finished()
    return rows
