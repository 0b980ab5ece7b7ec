"""Mutated requests: bodies that fit the API's document, changed in a value, a type, a depth, a
size, a byte or a header. None may be answered with a 5xx or not at all."""

import asyncio
import collections
import gzip
import zlib

from bodies import CHANGES, HUGE_TEXT, TEXT_CHANGES, Bodies, written
from report import Faults, Row, counted
from serving import DEMO, Server
from wire import Broken, Client, Hung, message

REQUESTS = 100_000
AT_ONCE = 24
# Once in so many requests a body is larger than any that is taken.
HUGE_EVERY = 5_000
CHANGED_BYTES_MAX = 20_000
# Long enough for every drawn prompt; an answer that a mutation made endless ends here.
CONTEXT_TOKENS = 192
TYPES = ("application/json", "application/json; charset=utf-8", "text/plain", "", "a/b;;=\"",
         "application/json; charset=utf-16", "APPLICATION/JSON", "application/jsonl", "\"", "*/*",
         "multipart/form-data; boundary=x", "application/json, application/json")
LINES = (
    "accept: text/html;q=x\r\n", "accept-encoding: gzip, zstd, br;q=0\r\n", "expect: 200-ok\r\n",
    "expect: 100-continue\r\n", "x-request-id: " + "a" * 5000 + "\r\n", "x-request-id: \t\x7f\r\n",
    "authorization: Bearer \r\n", "authorization: Basic \xff\xfe\r\n", "x-api-key: \r\n",
    "traceparent: 00-" + "0" * 32 + "-0-0\r\n", "traceparent: x\r\ntraceparent: y\r\n",
    "origin: null\r\n", "origin: http://evil.example\r\n", "connection: close\r\n",
    "connection: upgrade\r\nupgrade: websocket\r\n", "upgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
    "cookie: " + "x=y; " * 500 + "\r\n", "range: bytes=0-0\r\n", "if-none-match: *\r\n",
    "x-forwarded-for: 1.1.1.1\r\n", "forwarded: for=\"[::1]\"\r\n", "te: trailers\r\n",
    "content-language: \u00e9\r\n", "a: b\r\n" * 90, "content-encoding: identity\r\n",
    "content-encoding: br\r\n", "content-encoding: gzip, gzip\r\n", "content-encoding: zstd\r\n")
# To more than a body may become.
BOMB = gzip.compress(b" " * (50 << 20))
METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "QUERY", "post", "X" * 200)
PATHS = ("//", "/v1/../health", "/v1/models/%2e%2e", "/v1/models/a%00b", "/v1/models/%ff",
         "/v1/completions/", "/v1/completions?x=%zz&" + "a=b&" * 500, "/" + "a/" * 3000, "/%",
         "/v1/models/" + "n" * 9000, "/page/../../etc/passwd", "/v1/adapters/%F0%9F", "*",
         "/v1/usage?from=0&to=99999999999999999999", "/v1/usage?date=\u00e9", "/v1/batch?x",
         "http://localhost/health", "/docs?a#b", "/V1/Models", "/v1/completions;a=b")


class Mutator:
    """Draws requests, most of them wrong in one way, some in several, some right."""

    def __init__(self, document, names, rng):
        self.bodies, self.rng, self.count = Bodies(document, names, rng), rng, 0

    def draw(self):
        """The bytes of a request, and whether its answer has a body."""
        rng = self.rng
        self.count += 1
        if self.count % HUGE_EVERY == 0:
            return message("POST", "/v1/completions", {"prompt": "x" * HUGE_TEXT}), True
        path, body = self.bodies.draw()
        text = written(body)
        for _ in range(rng.choice([0, 0, 1, 1, 1, 2, 4])):
            # Some changes make 200 of one: of what is large already, none makes more.
            if body and len(text) < CHANGED_BYTES_MAX:
                rng.choice(CHANGES)(rng, body)
                text = written(body)
        if rng.random() < 0.3:
            text = rng.choice(TEXT_CHANGES)(rng, text)
        return self.framed(path, text)

    def framed(self, path, text):
        rng, method, lines, kind = self.rng, "POST", "", "application/json"
        if rng.random() < 0.1:
            lines += rng.choice(LINES)
        if rng.random() < 0.05:
            kind = rng.choice(TYPES)
        if rng.random() < 0.05:
            text, more = self.coded(text)
            lines += more
        if rng.random() < 0.03:
            method = rng.choice(METHODS)
        if rng.random() < 0.03:
            path = rng.choice(PATHS)
        if method == "GET":
            text = b""
        lines = f"content-type: {kind}\r\n{lines}"
        return message(method, path, text, lines), method != "HEAD"

    def coded(self, text):
        """Compressed, now and then not as its header says, or to more than it may become."""
        rng = self.rng
        return rng.choice([
            lambda: (gzip.compress(text), "content-encoding: gzip\r\n"),
            lambda: (zlib.compress(text), "content-encoding: deflate\r\n"),
            lambda: (gzip.compress(text)[:-9], "content-encoding: gzip\r\n"),
            lambda: (text, "content-encoding: gzip\r\n"),
            lambda: (text, "content-encoding: zstd\r\n"),
            lambda: (BOMB, "content-encoding: gzip\r\n"),
            lambda: (gzip.compress(gzip.compress(text)), "content-encoding: gzip, gzip\r\n")])()


class Asked:
    """What came of all requests."""

    def __init__(self):
        self.statuses, self.faults = collections.Counter(), Faults()

    def judge(self, answer, request):
        shown = request[:400]
        self.statuses[answer.status] += 1
        if answer.status >= 500:
            self.faults.add(f"status {answer.status} {answer.error_code()}", f"{shown} {answer}")
        elif answer.status >= 400 and answer.error_code() is None:
            self.faults.add(f"{answer.status} without our JSON", f"{shown} {answer}")
        for event in answer.events():
            if any(code in event for code in (b'"internal_error"', b'"engine_failed"',
                                              b'"text_failed"', b'"server_error"')):
                self.faults.add("a stream ended with a fault of the server", f"{shown} {event}")


async def ask(address, draw, left, asked):
    """Sends requests until none are left."""
    async with Client(address) as client:
        while next(left, None) is not None:
            request, has_body = draw()
            try:
                asked.judge(await client.send(request, has_body), request)
            except Hung:
                asked.faults.add("hung", request[:400])
            except (Broken, ConnectionError) as error:
                # A body that is refused unread may be cut off by the refusal.
                if len(request) < 1 << 20:
                    asked.faults.add(f"{type(error).__name__} {error}", request[:400])


def served(trial, *more, **others):
    """The demo with all its adapters, and room to load them under other names."""
    return Server(trial.binary, trial.folder, "--allow-runtime-adapters", "--adapter-root",
                  DEMO / "adapters", "--max-model-len", CONTEXT_TOKENS, "--queue-requests", 8192,
                  *more, **others)


async def mutator(server, rng):
    async with Client(server.address) as client:
        document = (await client.get("/openapi.json")).json()
    return Mutator(document, ["demo", *(path.name for path in (DEMO / "adapters").iterdir())], rng)


async def load(server, rng, left):
    """Mutated requests for as long as `left` gives numbers."""
    asked = Asked()
    draw = (await mutator(server, rng)).draw
    await asyncio.gather(*(ask(server.address, draw, left, asked) for _ in range(AT_ONCE)))
    return asked


async def part(trial):
    server = served(trial)
    asked = await load(server, trial.rng, iter(range(trial.count(REQUESTS))))
    faults = [*asked.faults, *await server.finished()]
    hangs = asked.faults.counts["hung"]
    fives = sum(count for status, count in asked.statuses.items() if status >= 500)
    return [Row("mutated requests", f"{sum(asked.statuses.values()) + hangs:,} requests",
                counted(asked.statuses), f"{fives} × 5xx, {hangs} hangs (0, 0)", faults)]
