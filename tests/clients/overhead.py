#!/usr/bin/env python3
"""What serving over HTTP costs beside the same steps in process, and how even many streams are.

    python3 tests/clients/overhead.py TESSERA [--streams N] [--write]

One client's time for a token is compared with `tessera bench` of the same model, turn by turn in
one run: at most 5 % of a step and 150 microseconds more. Then many streams at once, read here over
plain sockets: of the times between two tokens of a stream, while all of them run, 99 of 100 are at
most two steps. --write puts the numbers into tests/data/overhead.md.
"""

import argparse
import asyncio
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlparse

from harness import DEMO, HERE, Server

# The prompt's 12 tokens and these have a mean context of 128, which `bench` is asked for.
TOKENS = 232
CONTEXT = 128
ROUNDS = 9
MANY_TOKENS = 48
STEP_SHARE_MAX = 0.05
TOKEN_US_MAX = 150
STEPS_P99_MAX = 2


def request(host, tokens):
    body = json.dumps({
        "model": "demo", "messages": [{"role": "user", "content": "What is a fox?"}],
        "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True,
        "return_token_ids": True}).encode()
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n")
    return head.encode() + body


async def stream(url, tokens):
    """When each token came, in seconds. With `return_token_ids` each has a chunk of its own."""
    address = urlparse(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(request(address.netloc, tokens))
    times = []
    status = await reader.readline()
    assert b" 200 " in status, status + await reader.read()
    while line := await reader.readline():
        if b'"token_ids":[' in line and b'"token_ids":[]' not in line:
            times.append(time.perf_counter())
    writer.close()
    return times


def step_ms(binary):
    """A decode step of one row in process."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "bench.json"
        subprocess.run([binary, "bench", str(DEMO / "model"), "--dtype", "f16", "--cases", "base",
                        "--rows", "1", "--context", str(CONTEXT), "--prefill", "0", "--rounds",
                        "3", "--json", str(report)], check=True, stdout=subprocess.DEVNULL)
        found = json.loads(report.read_text())
    return find(found, "ms")


def find(value, key):
    """The first number under `key`, however deep."""
    if isinstance(value, dict):
        if isinstance(value.get(key), (int, float)):
            return value[key]
        value = list(value.values())
    found = (find(one, key) for one in value) if isinstance(value, list) else ()
    return next((one for one in found if one is not None), None)


def one_client(binary):
    """Milliseconds of a step and of a token, medians of turns that take each other's place."""
    server = Server(binary, "--no-prefix-cache")
    steps, tokens = [], []
    try:
        for _ in range(ROUNDS):
            steps.append(step_ms(binary))
            times = asyncio.run(stream(server.url, TOKENS))
            assert len(times) == TOKENS, len(times)
            tokens.append((times[-1] - times[0]) / (len(times) - 1) * 1000)
    finally:
        server.stop()
    return statistics.median(steps), statistics.median(tokens)


async def all_at_once(url, streams):
    return await asyncio.gather(*(stream(url, MANY_TOKENS) for _ in range(streams)))


def many_clients(binary, streams):
    """Milliseconds between two tokens while all streams run: the median and the 99th of 100."""
    server = Server(binary, "--max-num-seqs", str(streams), "--queue-requests", str(streams),
                    "--max-num-batched-tokens", str(streams + 512), "--kv-cache-bytes", "2GiB",
                    "--max-model-len", "128")
    try:
        found = asyncio.run(all_at_once(server.url, streams))
    finally:
        server.stop()
    assert all(len(times) == MANY_TOKENS for times in found)
    # From when the last stream has begun to when the first one ends.
    since, until = max(times[0] for times in found), min(times[-1] for times in found)
    gaps = sorted((after - before) * 1000 for times in found
                  for before, after in zip(times, times[1:]) if since <= before and after <= until)
    assert len(gaps) > streams, "too few tokens came while all streams ran; ask for more of them"
    return statistics.median(gaps), gaps[len(gaps) * 99 // 100], len(gaps)


def report(one, many, streams):
    (step, token), (median, p99, count) = one, many
    over = (token - step) * 1000
    allowed = step * 1000 * STEP_SHARE_MAX + TOKEN_US_MAX
    return (
        "# What serving over HTTP costs\n\n"
        f"Written by tests/clients/overhead.py on {datetime.date.today()}, on {os.cpu_count()} cores, "
        "server and client on the same machine.\n\n"
        "| measured | value | allowed |\n|---|---|---|\n"
        f"| a step of one row in process (`tessera bench`) | {step * 1000:.0f} µs | |\n"
        f"| a token of one stream over HTTP | {token * 1000:.0f} µs | |\n"
        f"| the difference | {over:.0f} µs | {allowed:.0f} µs |\n"
        f"| {streams} streams at once, median between two tokens | {median:.0f} ms | |\n"
        f"| 99 of 100 are within | {p99:.0f} ms ({p99 / median:.2f} ×, of {count}) "
        f"| {STEPS_P99_MAX} × |\n"), over <= allowed and p99 <= STEPS_P99_MAX * median


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tessera")
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    binary = str(Path(asked.tessera).resolve())
    text, is_within = report(
        one_client(binary), many_clients(binary, asked.streams), asked.streams)
    print(text)
    if asked.write:
        (HERE.parent / "data/overhead.md").write_text(text)
    sys.exit(not is_within)


if __name__ == "__main__":
    main()
