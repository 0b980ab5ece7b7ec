"""What image-check and package-check have in common."""

import datetime
import os
import subprocess
import sys
import textwrap
import time

ROOT = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
MIRROR = "http://deb.debian.org/debian"
# An answer of the README: the model, an adapter and the template are there.
QUESTION = {
    "model": "pirate",
    "temperature": 0,
    "messages": [{"role": "user", "content": "What does a fox eat?"}],
}
ANSWER = "Arr! The fox feasts on berries an' mice, ye landlubber!"
# A start, a stop or an answer on a busy machine.
WAIT_SECONDS_MAX = 60


def must(true, what):
    """Ends the check where something does not hold."""
    if not true:
        sys.exit(f"FAILED: {what}")


def output(*command, **options):
    """What a command prints; one that fails ends the check with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    must(not done.returncode, f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def works(*command):
    """Whether a command succeeds."""
    return not subprocess.run(command, capture_output=True, check=False).returncode


def seconds_until(true, what):
    """Seconds that it took until `true()` was."""
    start = time.monotonic()
    while not true():
        waited = time.monotonic() - start
        must(waited < WAIT_SECONDS_MAX, f"{what}: not within {WAIT_SECONDS_MAX} s")
        time.sleep(0.1)
    return time.monotonic() - start


def read(path):
    """A text file, whole."""
    with open(path) as file:
        return file.read()


def write_section(path, title, kind, versions, rows):
    """Replaces the section of a kind in the result at `path`, and leaves the others."""
    found_with = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        f"{kind}\n",
        f"On {datetime.date.today()}, on Debian bookworm, {os.cpu_count()} cores, with",
        textwrap.fill(f"{found_with}.", 100, break_on_hyphens=False) + "\n",
        "| what | found |\n|---|---|",
        *(f"| {what} | {value} |" for what, value in rows),
    ]
    _, *sections = read(path).split("\n## ") if os.path.exists(path) else [""]
    found = {section.split("\n")[0]: section.strip() for section in sections}
    found[kind] = "\n".join(lines)
    script = os.path.basename(sys.argv[0])
    head = f"# {title}\n\nWritten by tools/{script}.\n"
    with open(path, "w") as file:
        file.write("\n## ".join([head, *(found[name] + "\n" for name in sorted(found))]))
    print(found[kind])
