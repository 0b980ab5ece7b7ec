"""What the scripts of this folder share: a server to talk to, and checks that are counted.

Every script takes one argument: the URL of a running server, or the path of the executable, which
is then started for it.
"""

import asyncio
import contextlib
import importlib.metadata
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEMO = HERE.parents[1] / "demo"
ADAPTERS = ("pirate", "poet", "telegram", "formal", "json")
# What a framework writes around a question is longer than the 512 tokens that the demo was trained
# for. Beyond those its answers are rubbish, and of the right form all the same.
CONTEXT_TOKENS = 8192
ASKED = "What is a fox?"
QUESTION = [{"role": "user", "content": ASKED}]
# Without an end that the schema sets, a model that knows no JSON may write a text for ever.
ANSWER_TOKENS = 400
# Some libraries write whole requests into the texts of their errors.
ERROR_CHARACTERS_MAX = 2000


class Server:
    """The server as a user starts it, on a free port. What it logs goes to `log`, a file, or, without
    one, where this program's own goes."""

    def __init__(self, binary, *arguments, log=None):
        command = [binary, "serve", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        for line in self.process.stdout:
            found = re.match(r"ready: (https?://\S+)", line)
            if found:
                self.url = found[1]
                return
        raise SystemExit("the server ended before it was ready")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=40)
        assert status == 0, f"SIGTERM must end the server with status 0, got {status}"


@contextlib.contextmanager
def long_demo(binary, log=None):
    """The URL of the demo and its adapters, served with room for a framework's prompts."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "demo"
        shutil.copytree(DEMO / "model", model)
        config = json.loads((model / "config.json").read_text())
        config["max_position_embeddings"] = CONTEXT_TOKENS
        (model / "config.json").write_text(json.dumps(config))
        # A client that says no temperature must not draw another answer in each run.
        sampling = json.loads((model / "generation_config.json").read_text())
        sampling["temperature"] = 0
        (model / "generation_config.json").write_text(json.dumps(sampling))
        adapters = [flag for name in ADAPTERS
                    for flag in ("--adapter", f"{name}={DEMO / 'adapters' / name}")]
        server = Server(binary, str(model), "--served-model-name", "demo", *adapters, log=log)
        try:
            yield server.url
        finally:
            server.stop()


def serving(argument, log=None):
    """A context whose value is the URL, ending in /v1, that a script was given or asked for."""
    if argument.startswith("http"):
        return contextlib.nullcontext(argument)
    return long_demo(argument, log)


def versions(*packages):
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def run(name, checks):
    """Runs `checks`, each a function of the URL, and ends with status 1 if one fails."""
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} URL_OR_PATH_TO_TESSERA")
    failed = []
    with serving(sys.argv[1]) as url:
        for check in checks:
            try:
                check(url)
            except Exception as error:
                failed.append(check.__name__)
                where = [frame for frame in traceback.extract_tb(error.__traceback__)
                         if Path(frame.filename).parent == HERE]
                print("".join(traceback.format_list(where)), end="")
                print(f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS_MAX])
    for one in failed:
        print(f"failed: {one}")
    print(f"{name}: {len(checks) - len(failed)} passed, {len(failed)} failed")
    sys.exit(bool(failed))


def post(url, path, body):
    """What the server answers without any client between."""
    head = {"content-type": "application/json"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), head)
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply)


def greedy(url, model="demo", tokens=64):
    """The greedy answer to the question, which every client must get as well."""
    body = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": tokens}
    return post(url, "/chat/completions", body)["choices"][0]["message"]["content"]


# Libraries keep connections, which belong to the loop that opened them: one for all checks.
LOOP = asyncio.new_event_loop()


def wait(coroutine):
    return LOOP.run_until_complete(coroutine)


def anthropic_url(url):
    return url.removesuffix("/v1")


def is_answer(value):
    """Whether `value` is what the `Answer` of a script asks for."""
    return value["animal"] in ("fox", "owl") and 0 <= value["legs"] <= 8 and len(value) == 2


def raises(error, call):
    """Runs `call`, which must raise `error`, and returns that."""
    try:
        found = call()
    except error as raised:
        return raised
    raise AssertionError(f"expected {error.__name__}, got {found!r}")
