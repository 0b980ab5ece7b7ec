#!/usr/bin/env python3
"""A long hostile trial of one executable: who sends rubbish, leaves, overloads, swaps files, kills.

    python3 tests/soak/run.py --binary target/release/tessera [--only PART ...] [--scale 0.01]

Each part starts servers of its own on small models and looks at the end whether they were well:
gauges at rest, no 5xx, /health, the status after SIGTERM, no panic in the log. --scale multiplies
how often things are done; at 1 it takes about an hour on two cores. It ends with the table that
docs/reliability.md has, and with status 1 if a row does not hold.
"""

import argparse
import asyncio
import datetime
import logging
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import kills
import memory
import mutated
import overload
import raw
import slow
import stops
import swaps
import vanish
from report import Row, table
from serving import allow_many_files, kill_all, machine

PARTS = {
    "requests": mutated.part, "connections": raw.part, "swaps": swaps.part, "slow": slow.part,
    "vanish": vanish.part, "overload": overload.part, "adapters": memory.adapters,
    "bodies": memory.bodies, "kills": kills.part, "stops": stops.part,
}
FAULTS_SHOWN_MAX = 20


class Trial:
    """What every part is given."""

    def __init__(self, binary, folder, scale, seed):
        self.binary, self.folder, self.scale = str(Path(binary).resolve()), folder, scale
        self.rng = random.Random(seed)

    def count(self, whole):
        """How often a thing is done that is done `whole` times in a whole trial."""
        return max(1, round(whole * self.scale))


def run(name, part, trial):
    start = time.monotonic()
    try:
        rows = asyncio.run(part(trial))
    except Exception as error:
        traceback.print_exc()
        rows = [Row(name, "", "", "", [f"{type(error).__name__}: {error}"])]
    finally:
        kill_all()
    for row in rows:
        print(f"{'held' if row.held else 'FAILED'}: {row.name}: {row.tried}: {row.found}; "
              f"{row.figure}", flush=True)
        for fault in row.faults[:FAULTS_SHOWN_MAX]:
            print(f"    {fault}", flush=True)
    print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True)
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--scale", type=float, default=1)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    allow_many_files()
    # It warns of every connection that the other side has closed first.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    rows = []
    start = time.monotonic()
    for name in asked.only or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(asked.binary, Path(folder), asked.scale, asked.seed)
            rows += run(name, PARTS[name], trial)
    minutes = (time.monotonic() - start) / 60
    print(f"\n{datetime.date.today()}, {machine()}, {minutes:.0f} minutes:\n")
    print(table(rows))
    sys.exit(not all(row.held for row in rows))


if __name__ == "__main__":
    main()
