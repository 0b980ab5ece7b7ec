"""`tessera chat`, `generate` and `batch` as a person drives them: through a pseudo-terminal.

    python3 tests/clients/terminal.py PATH_TO_TESSERA
"""

import contextlib
import http.server
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TIMEOUT_S = 60
CTRL_C, CTRL_D, UP, ENTER = b"\x03", b"\x04", b"\x1b[A", b"\r"
# What a hostile model says: clear the screen, a colour, a bell, a title, a changed direction.
HOSTILE = "a\x1b[2Jb\x1b[31mc\x07d\x1b]0;title\x07e\u202ef\u009b31mg\r\nh"
SHOWN = "a␛[2Jb␛[31mc␇d␛]0;title␇e\\u{202e}f\\u{9b}31mg␍"


class Terminal:
    """A command with a terminal of its own."""

    def __init__(self, *command):
        self.pid, self.end = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(command[0], command)
        self.seen = b""

    def send(self, keys):
        os.write(self.end, keys if isinstance(keys, bytes) else keys.encode() + ENTER)

    def wait_for(self, text):
        """Reads until `text` has come since the last one; what came up to it."""
        wanted, end = text.encode(), time.monotonic() + TIMEOUT_S
        while wanted not in self.seen:
            assert self.read(end), f"expected {text!r}, got {self.seen!r}"
        before, self.seen = self.seen.split(wanted, 1)
        return before.decode(errors="replace")

    def read(self, end):
        ready, _, _ = select.select([self.end], [], [], max(0, end - time.monotonic()))
        if not ready:
            return False
        try:
            got = os.read(self.end, 65536)
        except OSError:  # The other side is closed.
            return False
        self.seen += got
        return bool(got)

    def finish(self):
        """Everything up to its end, and its exit code."""
        end = time.monotonic() + TIMEOUT_S
        while self.read(end):
            pass
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.end)
                return self.seen.decode(errors="replace"), os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"it did not end: {self.seen!r}")


class Hostile(http.server.BaseHTTPRequestHandler):
    """A server whose model says what it should not, and one that never stops."""

    protocol_version = "HTTP/1.1"
    stopped = threading.Event()
    asked = []

    def log_message(self, *_):
        pass

    def whole(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.whole(200, {"data": [{"id": "bad\x1b[2J"}, {"id": "endless"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            self.whole(200, {"count": 1})
            return
        Hostile.asked.append(body)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        try:
            self.event(HOSTILE)
            while body["model"] == "endless":
                self.event("on and on ")
                time.sleep(0.02)
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            Hostile.stopped.set()
        self.close_connection = True

    def event(self, text):
        event = {"choices": [{"text": text, "delta": {"content": text}}]}
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())


@contextlib.contextmanager
def hostile():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def a_talk_with_commands_and_history(tessera):
    chat = Terminal(tessera, "chat", "--temperature", "0", "--max-tokens", "40", "--stats")
    chat.wait_for("/help lists commands")
    chat.wait_for("demo> ")
    chat.send("What does a fox eat?")
    chat.wait_for("The fox eats berries and mice.\r\n")
    chat.wait_for(" tokens/s")
    chat.wait_for("demo> ")
    chat.send("/model pirate")
    chat.wait_for("pirate goes on")
    chat.wait_for("pirate> ")
    chat.send(UP + UP + ENTER)
    chat.wait_for("feasts on berries an' mice")
    chat.wait_for("pirate> ")
    chat.send("/model")
    assert "* pirate" in chat.wait_for("telegram"), "the list marks who is talked to"
    chat.wait_for("pirate> ")
    chat.send("/nonsense")
    chat.wait_for("error: there is no /nonsense")
    chat.wait_for("pirate> ")
    chat.send(CTRL_C)
    chat.wait_for("Ctrl-C again")
    chat.wait_for("pirate> ")
    chat.send("/reset")
    chat.wait_for("forgotten")
    chat.wait_for("pirate> ")
    chat.send(CTRL_D)
    _, code = chat.finish()
    assert code == 0, code


def ctrl_c_stops_an_answer_and_then_the_talk(tessera):
    with hostile() as url:
        chat = Terminal(tessera, "chat", "--url", url, "--model", "endless")
        chat.wait_for("endless> ")
        chat.send("Go on")
        chat.wait_for("on and on on and on ")
        chat.send(CTRL_C)
        chat.wait_for("endless> ")
        assert Hostile.stopped.wait(TIMEOUT_S), "the server goes on for nobody"
        chat.send("And now?")
        chat.wait_for("on and on ")
        roles = [message["role"] for message in Hostile.asked[-1]["messages"]]
        assert roles == ["user", "assistant", "user"], "what was said of it stays"
        chat.send(CTRL_C)
        chat.wait_for("endless> ")
        chat.send(CTRL_C)
        _, code = chat.finish()
        assert code == 0, code


def nothing_that_a_model_says_steers_the_terminal(tessera):
    with hostile() as url:
        generate = ["generate", "x", "--url", url, "--model", "bad"]
        shown, code = Terminal(tessera, *generate).finish()
        assert code == 0 and shown == f"{SHOWN}\r\nh\r\n", repr(shown)
        piped = subprocess.run([tessera, *generate], capture_output=True, check=True)
        assert piped.stdout.decode() == HOSTILE + "\n", piped.stdout
        chat = Terminal(tessera, "chat", "--url", url)
        assert "␛[2J" in chat.wait_for("/help lists commands"), "the model's name too"
        chat.wait_for("> ")
        chat.send("x")
        chat.wait_for(SHOWN)
        chat.wait_for("> ")
        chat.send("/quit")
        seen, code = chat.finish()
        assert code == 0 and "\x1b[2J" not in seen, seen


def a_batch_shows_a_bar_and_goes_on_after_ctrl_c(tessera):
    with tempfile.TemporaryDirectory() as folder:
        batch, answers = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        lines = [{"custom_id": f"q{i}", "method": "POST", "url": "/v1/completions",
                  "body": {"model": "pirate", "prompt": f"The fox {i}", "temperature": 0,
                           "max_tokens": 32, "ignore_eos": True}} for i in range(60)]
        batch.write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = [tessera, "batch", str(batch), "-o", str(answers), "--concurrency", "4"]
        run = Terminal(*command)
        run.wait_for("of 60 lines")
        run.send(CTRL_C)
        seen, code = run.finish()
        assert code == 1 and "the same command goes on from there" in seen, seen
        seen, code = Terminal(*command).finish()
        assert code == 0 and "60 lines: 60 answered, 0 failed" in seen, seen
        ids = [json.loads(line)["custom_id"] for line in answers.read_text().splitlines()]
        assert ids == [line["custom_id"] for line in lines]
        # Where nobody looks there is no bar.
        answers.unlink()
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        assert run.stdout.startswith("60 lines: 60 answered"), run.stdout
        assert not re.search(r"[\x1b\r]", run.stderr), run.stderr


CHECKS = (
    a_talk_with_commands_and_history,
    ctrl_c_stops_an_answer_and_then_the_talk,
    nothing_that_a_model_says_steers_the_terminal,
    a_batch_shows_a_bar_and_goes_on_after_ctrl_c,
)


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    tessera = str(Path(sys.argv[1]).resolve())
    for name in [name for name in os.environ if name.startswith("TESSERA_")]:
        del os.environ[name]
    for check in CHECKS:
        check(tessera)
        print(f"ok: {check.__name__}")


if __name__ == "__main__":
    main()
