"""HTTP/1.1 as a client of these trials speaks it: over asyncio's streams, with nothing hidden."""

import asyncio
import contextlib
import json
import socket
import struct

# A request that is not answered in this time has hung.
HANG_SECONDS = 60
JSON = "content-type: application/json\r\n"
# What a reader holds at most of a line: a chunk of an event stream is far smaller.
LINE_BYTES_MAX = 1 << 20


class Hung(Exception):
    """Nothing came for HANG_SECONDS."""


class Broken(Exception):
    """The connection ended within an answer, or what came is no HTTP."""


class Answer:
    """The head of a response, and its whole body."""

    def __init__(self, status, headers, body=b""):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body[:300]!r}"

    def error_code(self):
        """The word for programs of OpenAI's form, the type of Anthropic's; None of no form."""
        try:
            error = self.json()["error"]
            known = {"message", "type", "param", "code"}
            return error["code"] if set(error) == known else error["type"]
        except (ValueError, TypeError, KeyError):
            return None

    def events(self):
        return [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]


async def read_head(reader):
    """The status and headers of the next answer that is no interim one; None at the end."""
    while True:
        first = await reader.readline()
        if not first:
            return None
        if not first.startswith(b"HTTP/1.") or not first.endswith(b"\r\n"):
            raise Broken(f"no status line: {first[:80]!r}")
        status, headers = int(first.split()[1]), {}
        while (line := await reader.readline()) != b"\r\n":
            if not line.endswith(b"\r\n"):
                raise Broken("the head ended early")
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if status >= 200:
            return status, headers


async def read_body(reader, headers):
    if headers.get("transfer-encoding") == "chunked":
        parts = []
        while True:
            size = int((await reader.readline()).split(b";")[0] or b"x", 16)
            part = await reader.readexactly(size + 2)
            if size == 0:
                return b"".join(parts)
            parts.append(part[:-2])
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    return await reader.read()


async def read_answer(reader, has_body=True):
    """The next answer, or None where the connection ends before one."""
    try:
        head = await read_head(reader)
        if head is None:
            return None
        status, headers = head
        body = b"" if not has_body or status in (204, 304) else await read_body(reader, headers)
        return Answer(status, headers, body)
    except (asyncio.IncompleteReadError, ValueError) as error:
        raise Broken(str(error)) from error


def message(method, path, body=b"", lines=""):
    """A request. `body` is bytes, or a value that is written as JSON."""
    if not isinstance(body, bytes):
        body, lines = json.dumps(body).encode(), JSON + lines
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n{lines}"
    if method not in ("GET", "HEAD"):
        head += f"content-length: {len(body)}\r\n"
    return f"{head}\r\n".encode("utf-8", "surrogateescape") + body


async def connect(address, receive_bytes=None):
    """A connection to a host and port, or to a Unix socket's path; with `receive_bytes` the kernel
    takes that little before it is read."""
    raw = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    raw.setblocking(False)
    if receive_bytes:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    if raw.family == socket.AF_INET:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        await asyncio.get_running_loop().sock_connect(raw, address)
    except BaseException:
        raw.close()
        raise
    limit = receive_bytes or LINE_BYTES_MAX
    return await asyncio.open_connection(sock=raw, limit=limit)


def reset(writer):
    """Ends a connection with RST, whatever is on its way."""
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Client:
    """A connection that is kept, and opened again when the server has closed it."""

    def __init__(self, address, tls=None):
        self.address, self.tls, self.reader, self.writer = address, tls, None, None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.close()

    def close(self):
        """At once: what was not sent yet of a request that is answered is of no use."""
        if self.writer:
            self.writer.transport.abort()
        self.writer = None

    async def get(self, path):
        return await self.send(message("GET", path))

    async def post(self, path, body, lines=""):
        return await self.send(message("POST", path, body, lines))

    async def send(self, request, has_body=True, seconds=HANG_SECONDS):
        """Asks. Where a kept connection was closed meanwhile, once more on a new one."""
        try:
            async with asyncio.timeout(seconds):
                kept = self.writer is not None
                answer = await self.once(request, has_body, kept)
                if answer is None and kept:
                    answer = await self.once(request, has_body, False)
        except TimeoutError as error:
            self.close()
            raise Hung(f"no answer in {seconds} s") from error
        if answer is None:
            raise Broken("closed without an answer")
        return answer

    async def once(self, request, has_body, kept):
        try:
            if self.writer is None:
                self.reader, self.writer = await connect(self.address)
                if self.tls:
                    await self.writer.start_tls(self.tls)
            self.writer.write(request)
            answer = await read_answer(self.reader, has_body)
        except (ConnectionError, Broken):
            self.close()
            if kept:
                return None
            raise
        except BaseException:
            self.close()
            raise
        if answer is None or answer.headers.get("connection") == "close":
            self.close()
        return answer
