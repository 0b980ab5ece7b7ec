#!/usr/bin/env python3
"""Runs other people's clients against the real binary: makes each its environment, starts one
server for all, and counts.

    python3 tests/clients/run.py TESSERA [--fast] [--write] [--environments DIR] [CLIENT ...]

TESSERA is the executable. Without names all clients run; with --fast those that CI runs. --write
writes what passed, with versions and date, into tests/data/clients.md. Packages are those of the day
PACKAGES_UNTIL, whatever has come since.
"""

import argparse
import datetime
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from harness import serving

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REPORT = ROOT / "tests/data/clients.md"
UV = "uv==0.13.9"
PACKAGES_UNTIL = "2026-11-26"
# Whatever hangs is a failure, and must not hold up the others for ever.
CLIENT_SECONDS_MAX = 900
# How much is shown where a client fails.
OUTPUT_CHARACTERS_MAX = 8000
SERVER_LINES_MAX = 100


@dataclass
class Client:
    """A script, and the file of `requirements/` that says what it needs."""

    name: str
    requirements: str
    script: str
    fast: bool = True
    # These start a server of their own, to see how it starts and ends.
    own_server: bool = False


@dataclass
class Outcome:
    """What a client says of its versions, how many checks passed and failed, and what it printed."""

    client: str
    what: str
    passed: int
    failed: int
    seconds: float
    output: str


CLIENTS = [
    Client("openai", "sdk", "openai_client.py", own_server=True),
    Client("anthropic", "sdk", "anthropic_client.py", own_server=True),
    Client("fuzz", "sdk", "fuzz.py"),
    Client("litellm", "litellm", "litellm_client.py"),
    Client("langchain", "langchain", "langchain_client.py"),
    Client("llamaindex", "llamaindex", "llamaindex_client.py"),
    Client("pydantic_ai", "pydantic_ai", "pydantic_ai_client.py"),
    Client("instructor", "instructor", "instructor_client.py"),
    Client("outlines", "outlines", "outlines_client.py"),
    Client("llm", "llm", "llm_command.py"),
    Client("agents", "agents", "agents_client.py"),
    Client("smolagents", "smolagents", "smolagents_client.py"),
    Client("node-openai", "node", "node/openai.mjs"),
    Client("node-ai", "node", "node/ai_sdk.mjs"),
    Client("node-anthropic", "node", "node/anthropic.mjs"),
    # Their packages bring torch, gigabytes of it.
    Client("guidellm", "guidellm", "guidellm_load.py", fast=False),
    Client("lm-eval", "lm_eval", "lm_eval_chat.py", fast=False),
]


class Environments:
    """A folder of environments, one for each file of requirements, each made when first needed."""

    def __init__(self, folder):
        self.folder = folder
        self.made = {}

    def bin(self, requirements):
        """The folder of executables in which `requirements` are installed."""
        if requirements not in self.made:
            self.made[requirements] = self.make(requirements)
        return self.made[requirements]

    def make(self, requirements):
        venv = self.folder / requirements
        if not (venv / "bin/python").exists():
            subprocess.run([self.uv(), "venv", "-q", "-p", sys.executable, venv], check=True)
        subprocess.run(
            [self.uv(), "pip", "install", "-q", "-p", venv / "bin/python", "--exclude-newer",
             PACKAGES_UNTIL, "-r", HERE / "requirements" / f"{requirements}.txt"], check=True)
        if requirements == "node":
            subprocess.run([venv / "bin/npm", "ci", "--silent", "--no-audit", "--no-fund"],
                           cwd=HERE / "node", env=with_path(venv / "bin"), check=True)
        return venv / "bin"

    def uv(self):
        """pip would take a minute where this takes seconds."""
        path = self.folder / "uv/bin/uv"
        if not path.exists():
            venv = self.folder / "uv"
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
            subprocess.run([venv / "bin/pip", "install", "--quiet", UV], check=True)
        return path


def with_path(folder):
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}


def run(client, environments, binary, url):
    """The outcome of all its checks."""
    folder = environments.bin(client.requirements)
    program = folder / ("node" if client.script.endswith(".mjs") else "python")
    target = binary if client.own_server else url
    began = time.monotonic()
    with subprocess.Popen([program, HERE / client.script, target], text=True, cwd=HERE,
                          env=with_path(folder), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        try:
            output, _ = process.communicate(timeout=CLIENT_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            output = f"{process.communicate()[0]}\n{client.name}: 0 passed, 1 failed (too slow)"
    seconds = time.monotonic() - began
    counted = re.findall(r"^(.*): (\d+) passed, (\d+) failed", output, re.MULTILINE)
    what, passed, failed = (counted or [(client.name, "0", "1")])[-1]
    # A script that breaks after its last check has failed as well.
    failed = max(int(failed), int(process.returncode != 0))
    print(f"{what}: {passed} passed, {failed} failed ({seconds:.0f} s)", flush=True)
    return Outcome(client.name, what, int(passed), failed, seconds, output)


def report(rows):
    """Puts each client's row in its place; those that did not run keep theirs."""
    kept = {}
    if REPORT.exists():
        kept = {line.split("|")[1].strip(): line for line in REPORT.read_text().splitlines()
                if line.startswith("| ")}
    for row in rows:
        kept[row.client] = (f"| {row.client} | {row.what} | {row.passed} | {row.failed} "
                            f"| {row.seconds:.0f} | {datetime.date.today()} |")
    lines = [kept[client.name] for client in CLIENTS if client.name in kept]
    REPORT.write_text(
        "# Other people's clients on Tessera\n\n"
        "Written by tests/clients/run.py, against the demo.\n\n"
        "| client | versions | passed | failed | seconds | date |\n|---|---|---|---|---|---|\n"
        + "\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tessera")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--environments", type=Path, default=ROOT / ".venv/clients")
    parser.add_argument("clients", nargs="*", metavar="CLIENT")
    asked = parser.parse_intermixed_args()
    unknown = set(asked.clients) - {client.name for client in CLIENTS}
    if unknown:
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    chosen = [client for client in CLIENTS if client.name in asked.clients
              or not asked.clients and (client.fast or not asked.fast)]
    binary = str(Path(asked.tessera).resolve())
    environments = Environments(asked.environments.resolve())
    with tempfile.TemporaryFile("w+") as log:
        with serving(binary, log) as url:
            rows = [run(client, environments, binary, url) for client in chosen]
        failed = [row for row in rows if row.failed]
        if failed:
            log.seek(0)
            print("the server said:", *log.readlines()[-SERVER_LINES_MAX:], sep="\n")
    if asked.write:
        report(rows)
    # Last, where whoever reads a long log looks first.
    for row in failed:
        print(f"== {row.client} printed:\n{row.output[-OUTPUT_CHARACTERS_MAX:]}")
    print(f"{len(rows) - len(failed)} of {len(rows)} clients are served",
          *(f"not {row.client}" for row in failed), sep="; ")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
