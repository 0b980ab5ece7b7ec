#!/usr/bin/env python3
"""Runs every command and request of the README and of docs/, and follows every link.

    python3 tests/docs/run.py TESSERA [--python PYTHON] [--write] [PAGE ...]

TESSERA is the executable. PYTHON runs the pages' programs: with the packages of
tests/clients/requirements/sdk.txt all but the training scripts, which need torch. What is not run
is listed with its reason. --write writes what was run, with the versions of PYTHON's packages, into
tests/data/docs.md. markdown.py says what a page may hold.
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
from pathlib import Path

import faults
from execute import INSTEAD, Runner
from markdown import PageError, blocks
from names import Names

# Of what a failing block prints.
SHOWN_LINES_MAX = 20
ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "tests/data/docs.md"
PACKAGES = ("openai", "torch", "transformers", "peft")


def has_module(python, module):
    """Whether it is installed; to import torch would take seconds."""
    program = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
    done = subprocess.run([python, "-c", program], capture_output=True, check=False)
    return done.returncode == 0


class Count:
    """What came of a page."""

    def __init__(self, page):
        self.page = page
        self.passed = 0
        self.failed = []
        self.skipped = []

    def fail(self, error):
        said = str(error).splitlines()
        if len(said) > SHOWN_LINES_MAX:
            said = [said[0], "…", *said[1 - SHOWN_LINES_MAX:]]
        self.failed.append(f"{self.page}:{error.line}: " + "\n    ".join(said))

    def skip(self, block, reason):
        first = block.text.strip().splitlines()[0]
        self.skipped.append(f"{self.page}:{block.line}: `{first}`: {reason}")


def attempt(count, runner, block, python):
    """Runs a block, unless it says itself that it cannot be run here."""
    if "not run" in block.marks:
        count.skip(block, block.marks["not run"])
        return
    if "needs" in block.marks and not has_module(python, block.marks["needs"]):
        count.skip(block, f"this Python has no {block.marks['needs']}")
        if block.marks["else"] is None:
            return
        block.text, block.language, block.output = block.marks["else"], "sh", None
    try:
        runner.run(block)
        # A file is only what others need.
        count.passed += block.kind() in ("run", "request")
    except PageError as error:
        count.fail(error)


def check(page, names, binary, python):
    """Runs a page, given by its path, and looks for what it names."""
    shown = page.relative_to(names.root) if page.is_relative_to(names.root) else page.name
    count = Count(shown)
    text = page.read_text()
    try:
        found = blocks(text)
    except PageError as error:
        count.fail(error)
        return count
    for error in names.check(page, text, found):
        count.fail(error)
    with tempfile.TemporaryDirectory(prefix="docs-") as folder:
        runner = Runner(ROOT, binary, python, Path(folder))
        try:
            for block in found:
                attempt(count, runner, block, python)
        finally:
            runner.close()
    return count


def report(counts, python):
    """The dated result: what was run with which packages."""
    program = ("import importlib.metadata as m\n"
               f"for n in {PACKAGES}:\n"
               "  try: print(n, m.version(n))\n"
               "  except m.PackageNotFoundError: pass")
    found = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    versions = ", ".join(found.stdout.splitlines())
    rows = [f"| {one.page} | {one.passed} | {len(one.failed)} | {len(one.skipped)} |"
            for one in counts]
    skipped = [f"* {line}" for one in counts for line in one.skipped]
    REPORT.write_text(
        "# The pages, run\n\n"
        f"Written by tests/docs/run.py on {datetime.date.today()}, with Python's packages "
        f"{versions}.\n\n| page | passed | failed | not run |\n|---|---|---|---|\n"
        + "\n".join(rows) + "\n\nNot run:\n\n" + "\n".join(skipped) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tessera")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE")
    asked = parser.parse_args()
    binary = Path(asked.tessera).resolve()
    names = Names(ROOT, binary)
    # A tester that passes whatever it reads would not be seen otherwise.
    faults.check(lambda page: check(page, names, binary, asked.python))
    pages = asked.pages or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for typed, instead in INSTEAD:
        print(f"in place of {typed}: {instead}")
    counts = []
    for page in pages:
        counts.append(check(page.resolve(), names, binary, asked.python))
        done = counts[-1]
        print(f"{done.page}: {done.passed} passed, {len(done.failed)} failed, "
              f"{len(done.skipped)} not run", flush=True)
        for line in done.failed:
            print(f"  failed: {line}")
        for line in done.skipped:
            print(f"  not run: {line}")
    if asked.write:
        report(counts, asked.python)
    failed = sum(len(one.failed) for one in counts)
    print(f"docs: {sum(one.passed for one in counts)} passed, {failed} failed, "
          f"{sum(len(one.skipped) for one in counts)} skipped")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
