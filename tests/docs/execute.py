"""Runs a page's blocks in a folder of its own that looks like a clone of the repository."""

import json
import os
import re
import signal
import socket
import subprocess
import time
import tomllib
import urllib.error
import urllib.request

from markdown import PageError

# What a reader types, and what is run in its place: the binary under test is not built again, and
# nothing is downloaded.
INSTEAD = [
    ("cargo run --release --", "tessera"),
    ("cargo install --path .", "tessera --version"),
    ("meta-llama/Llama-3.1-8B-Instruct", "tests/golden/llama"),
    ("./adapters/sql", "tests/golden/llama/adapters/lora_qv"),
    ("my-org/support-lora", "tests/golden/llama/adapters/ia3"),
]
# What changes the machine or takes minutes is never run: its block must say why not.
NEVER = re.compile(r"^\s*(?:sudo )?(cargo|docker|kubectl|helm|pip|npm|apt-get|systemctl)\b",
                   re.MULTILINE)
# Ports that pages name; each stands for a free one.
PORTS = range(8000, 8004)
# A last command that serves; with these flags it would print and end.
SERVER = re.compile(r"(?:\w+=\S+ )*tessera serve\b(?!.* --(?:help|print-config)\b)")
# Training scripts on a busy machine take the longest.
BLOCK_SECONDS_MAX = 900
READY_SECONDS_MAX = 120
END_SECONDS_MAX = 45


def free_ports():
    sockets = [socket.socket() for _ in PORTS]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = {port: one.getsockname()[1] for port, one in zip(PORTS, sockets)}
    for one in sockets:
        one.close()
    return ports


def matches(expected, actual):
    """Whether `actual` is `expected`, in which a line of … stands for any lines and … in a line
    for anything in it."""
    lines = [re.escape(line.rstrip()).replace("…", ".*") for line in expected.strip().splitlines()]
    pattern = ""
    for line in lines:
        pattern += r"(?:[^\n]*\n)*?" if line == ".*" else line + r"\n"
    actual = "".join(line.rstrip() + "\n" for line in actual.strip().splitlines())
    return re.fullmatch(pattern, actual) is not None


def holds(expected, actual):
    """Whether an answer has at least what is expected: "…" is anything, as the last item of a list
    any further items."""
    if expected == "…":
        return True
    if isinstance(expected, dict) and isinstance(actual, dict):
        return all(key in actual and holds(value, actual[key]) for key, value in expected.items())
    if isinstance(expected, list) and isinstance(actual, list):
        if expected and expected[-1] == "…":
            expected, actual = expected[:-1], actual[:len(expected) - 1]
        return len(expected) == len(actual) and all(map(holds, expected, actual))
    if isinstance(expected, str) and isinstance(actual, str):
        return matches(expected, actual)
    return expected == actual and type(expected) is type(actual)


def last_command(script):
    """The last command of a script, its continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", script)
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return lines[-1] if lines else ""


class Runner:
    """One page's folder, its servers, and what its blocks export."""

    def __init__(self, root, binary, python, folder):
        self.folder, self.python, self.ports = folder, python, free_ports()
        # By their ports.
        self.servers = {}
        self.logs = 0
        for entry in root.iterdir():
            if entry.name not in ("target", ".git", ".venv"):
                (folder / entry.name).symlink_to(entry)
        (folder / ".bin").mkdir()
        (folder / ".bin/tessera").symlink_to(binary)
        path = [str(folder / ".bin"), os.path.dirname(python), os.environ["PATH"]]
        self.environment = {
            **os.environ, "PATH": ":".join(path), "HF_HOME": str(folder / ".hub"),
            "HF_HUB_OFFLINE": "1", "TESSERA_PORT": str(self.ports[8000]), "COLUMNS": "100"}
        (folder / ".exports").write_text("")

    def run(self, block):
        """Runs a block, and raises a PageError if it is not as the page says."""
        kind = block.kind()
        if block.language == "toml":
            self.check_toml(block)
        if kind == "file":
            path = self.folder / block.words[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.with_ports(block.text))
        elif kind == "request":
            self.request(block)
        elif kind == "run" and block.language == "console":
            self.console(block)
        elif kind == "run":
            script = self.as_run(block.text)
            found = NEVER.search(script)
            if found:
                raise PageError(block.line, f"{found[1]} is never run here: say `not run`, and why")
            if block.language == "python":
                (self.folder / ".block.py").write_text(script)
                script = "python3 .block.py\n"
            is_server = SERVER.match(last_command(script)) is not None
            if is_server:
                # A reader ends the one that is there before.
                end(self.servers.pop(self.port(script), None))
            serves = is_server and "fails" not in block.marks
            output = self.serve(block, script) if serves else self.script(block, script)
            if block.output and not matches(block.output.text, output):
                raise PageError(block.output.line, f"what is printed is\n{output}")

    @staticmethod
    def check_toml(block):
        try:
            tomllib.loads(block.text)
        except tomllib.TOMLDecodeError as error:
            raise PageError(block.line, f"is no TOML: {error}") from None

    def with_ports(self, text):
        def free(found):
            return found[1] + str(self.ports[int(found[2])])
        return re.sub(r"(:|--port[ =]|port=|PORT=)(800[0-3])\b", free, text)

    def as_run(self, text):
        for typed, instead in INSTEAD:
            text = text.replace(typed, instead)
        return self.with_ports(text)

    def printed(self, text):
        """Output as the page may have it: with the ports that it names."""
        for port, free in self.ports.items():
            text = text.replace(str(free), str(port))
        return text

    def start(self, script, keep):
        """Starts bash in a process group of its own; returns it and the path of its output."""
        self.logs += 1
        log = self.folder / f".log{self.logs}"
        after = "export -p > .exports\n" if keep else ""
        program = f"source .exports\nset -euo pipefail\n{script}\n{after}"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["bash", "-c", program], cwd=self.folder, env=self.environment, stdout=output,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
        return process, log

    def script(self, block, script):
        process, log = self.start(script, keep="fails" not in block.marks)
        try:
            status = process.wait(timeout=BLOCK_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            status = f"none after {BLOCK_SECONDS_MAX} s"
        end(process)
        output = self.printed(log.read_text(errors="replace"))
        expected = int(block.marks.get("fails", 0))
        if status != expected:
            raise PageError(block.line, f"ends with status {status}, not {expected}:\n{output}")
        return output

    def console(self, block):
        commands = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
        if commands[0].strip() or len(commands) < 2:
            raise PageError(block.line, "console has no line that begins with `$ `")
        for command in commands[1:]:
            typed, _, rest = command.partition("\n")
            while typed.endswith("\\") or rest.startswith("> "):
                more, _, rest = rest.partition("\n")
                typed += "\n" + more.removeprefix("> ")
            output = self.script(block, self.as_run(typed))
            if not matches(rest, output):
                raise PageError(block.line, f"{typed} prints\n{output}")

    def serve(self, block, script):
        """Starts a server, and waits for it."""
        process, log = self.start(script.rstrip().removesuffix("&"), keep=False)
        self.servers[self.port(script)] = process
        until = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < until and process.poll() is None:
            output = log.read_text()
            if re.search(r"^ready: .*\n", output, re.MULTILINE):
                return self.printed(re.sub(r"(^ready: .*\n).*", r"\1", output,
                                           flags=re.MULTILINE | re.DOTALL))
            time.sleep(0.05)
        raise PageError(block.line, f"the server is not ready:\n{log.read_text()}")

    def port(self, script):
        """The port that the server of a script listens on."""
        given = re.search(r"--port[ =](\d+)", last_command(script))
        return int(given[1]) if given else self.ports[8000]

    def request(self, block):
        method, path = block.words
        body = self.with_ports(block.text).strip()
        # GET has no body; what stands in its block is a remark or nothing.
        data = json.dumps(self.parsed(block, body)).encode() if body else None
        head = {"content-type": "application/json"} if data else {}
        url = f"http://127.0.0.1:{self.ports[8000]}{path}"
        request = urllib.request.Request(url, data, head, method=method)
        try:
            with urllib.request.urlopen(request, timeout=BLOCK_SECONDS_MAX) as reply:
                status, answer = reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            status, answer = error.code, error.read().decode()
        except OSError as error:
            raise PageError(block.line, f"no server on the page's port 8000: {error}") from None
        answer = self.printed(answer)
        expected = int(block.marks.get("fails", 200))
        if status != expected:
            raise PageError(block.line, f"is answered {status}, not {expected}:\n{answer}")
        if block.output and not self.is_answer(block.output, answer):
            raise PageError(block.output.line, f"the answer is\n{answer}")

    def is_answer(self, block, answer):
        if block.language == "output":
            return matches(block.text, answer)
        return holds(self.parsed(block, block.text), self.parsed(block, answer))

    @staticmethod
    def parsed(block, text):
        try:
            return json.loads(text)
        except ValueError as error:
            raise PageError(block.line, f"is no JSON: {error}\n{text}") from None

    def close(self):
        for process in self.servers.values():
            end(process)


def end(process):
    """Ends a process, if any, and all that it started: what SIGTERM leaves, by SIGKILL."""
    for sent in (signal.SIGTERM, signal.SIGKILL) if process else ():
        try:
            os.killpg(process.pid, sent)
            process.wait(timeout=END_SECONDS_MAX)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            pass
