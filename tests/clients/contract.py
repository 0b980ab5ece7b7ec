#!/usr/bin/env python3
"""schemathesis over /openapi.json of the real binary serving the built-in demo.

usage: contract.py PATH_TO_TESSERA [EXAMPLES [SEED [PHASES]]]

EXAMPLES a route are made at random beside those of every boundary, from SEED on. Fails on a status
or an answer that the document does not have, a 5xx, a request that is taken though it does not fit
or refused though it does, and a key that is not asked for.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

KEY = "contract"
HERE = Path(__file__).resolve().parent
# Of requests that do not fit: more than schemathesis expects by itself.
CONFIG = """
[auth.openapi]
bearer = { bearer = "%(key)s" }
key = { api_key = "%(key)s" }

[checks]
negative_data_rejection.expected-statuses = ["4XX"]
positive_data_acceptance.expected-statuses = ["2XX", "400", "404", "429"]
"""


def serve(binary, root):
    """The server as a user starts it, on a free port, and its address."""
    command = [binary, "serve", "--port", "0", "--api-key", KEY, "--metrics-key", "another",
               "--allow-runtime-adapters", "--adapter-root", root, "--no-access-log"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        found = re.match(r"ready: (http://[^/\s]+)", line)
        if found:
            return process, found[1]
    raise SystemExit("the server ended before it was ready")


def names(url):
    head = {"Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{url}/v1/models", headers=head)
    with urllib.request.urlopen(request) as answer:
        return [card["id"] for card in json.load(answer)["data"]]


def run(url, examples, seed, phases, folder):
    config, counts = Path(folder, "schemathesis.toml"), Path(folder, "counts.json")
    config.write_text(CONFIG % {"key": KEY})
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": str(HERE / "contract_hooks.py"),
        "CONTRACT_NAMES": ",".join(names(url)),
        "CONTRACT_COUNTS": str(counts),
    }
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(config), "run",
        f"{url}/openapi.json",
        "--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure",
        "--phases", phases, "--suppress-health-check", "all",
        "--request-timeout", "300", "--warnings", "off", "--no-color",
    ]
    status = subprocess.run(command, cwd=folder, env=environment).returncode
    return status, json.loads(counts.read_text())


def main():
    binary = os.path.abspath(sys.argv[1])
    examples = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    phases = sys.argv[4] if len(sys.argv) > 4 else "examples,coverage,fuzzing"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "adapters")
        root.mkdir()
        server, url = serve(binary, str(root))
        try:
            status, told = run(url, examples, seed, phases, folder)
            assert server.poll() is None, "the server has ended"
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)
    print(json.dumps(told, indent=1))
    raise SystemExit(status)


main()
