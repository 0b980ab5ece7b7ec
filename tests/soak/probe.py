"""Measures from a process of its own, which no other work of a trial holds up."""

import asyncio
import concurrent.futures
import multiprocessing
import socket
import time

ANSWER_SECONDS_MAX = 10
EVERY_SECONDS = 0.02


def health(address):
    """Seconds that /health took on a new connection, and its status; 0 of none."""
    start = time.perf_counter()
    try:
        with socket.create_connection(address, ANSWER_SECONDS_MAX) as one:
            one.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            came = b""
            while chunk := one.recv(4096):
                came += chunk
        status = int(came.split()[1])
    except (OSError, IndexError, ValueError):
        status = 0
    return time.perf_counter() - start, status


def many(address, seconds):
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        found.append(health(address))
        time.sleep(EVERY_SECONDS)
    return found


async def probe(address, seconds):
    """All that /health answered while other things go on here."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, many, address, seconds)
