"""Tessera on Ray Serve: replicas that each run one server, and requests that go to one which holds
their adapter.

`Front` reads the `model` of a request and gives it to Serve as the id to route by. `Replica` runs
`tessera serve` on a port of its own and has Serve's multiplexing load and unload its adapters. What
a lost replica has sent nothing of is sent to another one; a stream that has begun ends with an
error. docs/deployment.md says how to start it.
"""

import asyncio
import itertools
import json
import os
import re
import subprocess
import threading
import time
import urllib.request
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import aiohttp
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.exceptions import NodeDiedError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import (BackPressureError, DeploymentUnavailableError,
                                  ReplicaUnavailableError)
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

# As the server's own; a larger body is answered 413.
BODY_BYTES_MAX = 32 << 20
# How long a request is tried again whose answer has not begun.
RETRY_SECONDS_MAX = 60
# Between two tries: twice as long after each.
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.1, 2.0
HEALTH_SECONDS_MAX = 5
LOAD_SECONDS_MAX = 600
# Times that a request may find its adapter gone again, for others that came between.
LOADS_MAX = 10
# For an administrator's key, with which replicas load adapters; for servers that have keys.
ADMIN_KEY = "TESSERA_RAY_ADMIN_KEY"

POSTED = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens",
          "/v1/responses", "/v1/embeddings", "/v1/loglikelihood", "/tokenize", "/detokenize")
ASKED = ("/v1/models", "/health", "/version")
# What a server answers that has no room, drains, or whose engine has ended: another may have it.
ELSEWHERE = 503
MISSING = 404
PASSED_ON = ("authorization", "x-api-key", "content-type", "x-request-id", "traceparent",
             "tracestate", "anthropic-version")
# Of one connection, or made anew for the next.
NOT_PASSED_BACK = ("connection", "content-length", "date", "keep-alive", "transfer-encoding")


class Settings(BaseModel):
    """The `args` of the application in config.yaml."""

    model_config = ConfigDict(extra="forbid")
    model: str
    # A folder that every node sees: the adapter `sql` is its folder `sql`.
    adapters: str
    # Kept by a replica at once; the longest unused makes room.
    adapters_per_replica: int = 64
    executable: str = "tessera"
    # Further arguments of `tessera serve`.
    arguments: list[str] = []


@dataclass
class Call:
    """A request, as it is sent to a replica."""

    method: str
    path: str
    headers: dict
    body: bytes


@dataclass
class Head:
    """How an answer begins, or all of it: `body` is None where events follow."""

    status: int
    headers: dict
    body: bytes | None = None


class ServerLost(Exception):
    """The server of a replica is gone, or sends requests elsewhere."""


class Refused(Exception):
    """An adapter that its server does not take; `head` is what it answered."""

    def __init__(self, head):
        super().__init__(head.status)
        self.head = head


LOST = (ServerLost, RayActorError, WorkerCrashedError, NodeDiedError, ReplicaUnavailableError,
        DeploymentUnavailableError)


class ServerProcess:
    """`tessera serve`, which ends with this process, and this process with it: so a replica that
    Ray takes for alive has a server."""

    def __init__(self, command):
        # Killed with its parent, however that ends: nobody would be left to take its answers.
        command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
        self.is_stopping = False
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = self.wait_until_ready()
        threading.Thread(target=self.watch, daemon=True).start()

    def wait_until_ready(self):
        for line in self.process.stdout:
            print(line, end="", flush=True)
            found = re.match(r"ready: (http://[^/\s]+)", line)
            if found:
                return found[1]
        raise RuntimeError(f"tessera ended with {self.process.wait()}; its log says why")

    def watch(self):
        for line in self.process.stdout:
            print(line, end="", flush=True)
        status = self.process.wait()
        if not self.is_stopping:
            print(f"tessera ended with {status}", flush=True)
            os._exit(1)

    def stop(self):
        """Ends it by SIGTERM; requests that it still has get the time of --drain-seconds."""
        self.is_stopping = True
        self.process.terminate()
        self.process.wait()


class Adapter:
    """An adapter that a server holds for as long as Serve's multiplexing keeps this."""

    def __init__(self, unload):
        self.unload = unload

    def __del__(self):
        # Serve calls it when another adapter takes the place, and Python may once more.
        unload, self.unload = self.unload, None
        if unload:
            unload()


@serve.deployment
class Replica:
    """One server, and the adapters that it holds."""

    def __init__(self, settings: Settings):
        self.adapters = settings.adapters
        self.server = ServerProcess([
            settings.executable, "serve", settings.model, "--host", "127.0.0.1", "--port", "0",
            "--allow-runtime-adapters", "--adapter-root", settings.adapters, *settings.arguments])
        key = os.environ.get(ADMIN_KEY)
        self.admin = {"authorization": f"Bearer {key}"} if key else {}
        self.told = {"x-tessera-replica": serve.get_replica_context().replica_id.unique_id}
        self.opened = None
        # By name, those that the server has now.
        self.held = {}

        async def load(name: str):
            return await self.load(name)

        self.adapter = serve.multiplexed(
            max_num_models_per_replica=settings.adapters_per_replica)(load)

    def session(self):
        """Connections to the server; made by the loop that uses them."""
        if self.opened is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=HEALTH_SECONDS_MAX)
            self.opened = aiohttp.ClientSession(
                self.server.url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
        return self.opened

    async def load(self, name):
        body = {"lora_name": name, "lora_path": name, "load_inplace": True}
        timeout = aiohttp.ClientTimeout(total=LOAD_SECONDS_MAX)
        try:
            async with self.session().post("/v1/load_lora_adapter", json=body, headers=self.admin,
                                           timeout=timeout) as reply:
                if reply.status != 200:
                    raise Refused(await self.whole(reply))
        except (aiohttp.ClientError, OSError) as error:
            raise ServerLost(f"loading {name}: {error!r}") from None
        self.held[name] = Adapter(lambda: self.unload(name))
        return self.held[name]

    def unload(self, name):
        self.held.pop(name, None)
        if self.server.is_stopping:
            return
        request = urllib.request.Request(
            f"{self.server.url}/v1/unload_lora_adapter", json.dumps({"lora_name": name}).encode(),
            {"content-type": "application/json", **self.admin})
        try:
            urllib.request.urlopen(request, timeout=HEALTH_SECONDS_MAX).close()
        except OSError as error:
            print(f"unloading {name}: {error}", flush=True)

    async def answer(self, call: Call):
        """A `Head` and, of a stream, its events, never less than a whole one."""
        name = serve.get_multiplexed_model_id()
        is_missing = False
        for _ in range(LOADS_MAX):
            try:
                # One that is not here is loaded once the server has looked at the request's key:
                # a stranger has nothing loaded.
                held = await self.adapter(name) if is_missing or name in self.held else None
                async with self.session().request(call.method, call.path, headers=call.headers,
                                                  data=call.body) as reply:
                    if reply.content_type == "text/event-stream":
                        yield Head(reply.status, self.passed_back(reply))
                        async for events in whole_events(reply.content):
                            yield events
                        return
                    head = await self.whole(reply)
            except Refused as refused:
                head = refused.head
                break
            except (aiohttp.ClientError, OSError) as error:
                raise ServerLost(repr(error)) from None
            is_missing = bool(name) and head.status == MISSING
            # Told that it is missing while it is here: the key may not use it.
            if not is_missing or held and self.held.get(name) is held:
                break
        yield head

    async def whole(self, reply):
        return Head(reply.status, self.passed_back(reply), await reply.read())

    def passed_back(self, reply):
        kept = {name.lower(): value for name, value in reply.headers.items()
                if name.lower() not in NOT_PASSED_BACK}
        return {**kept, **self.told}

    async def check_health(self):
        """Serve replaces a replica for which this raises: one whose engine has ended."""
        timeout = aiohttp.ClientTimeout(total=HEALTH_SECONDS_MAX)
        async with self.session().get("/health", timeout=timeout) as reply:
            if reply.status != 200:
                raise RuntimeError(f"/health answers {reply.status}")

    def __del__(self):
        # Serve calls it once a replica that is to end has answered all that it had.
        self.server.stop()


async def whole_events(content):
    """What has come of a stream, cut between two events; a part of one is kept back."""
    kept = b""
    async for chunk in content.iter_any():
        whole, end, kept = (kept + chunk).rpartition(b"\n\n")
        if end:
            yield whole + end


@serve.deployment
class Front:
    """Takes requests of HTTP and sends each to a replica that has its adapter."""

    def __init__(self, settings: Settings, replicas):
        self.adapters = Path(settings.adapters)
        self.replicas = replicas

    async def __call__(self, request: Request):
        path = request.url.path.rstrip("/")
        if path not in (POSTED if request.method == "POST" else ASKED):
            message = ("There is no such route here. Adapters are loaded when they are asked for; "
                       f"POST takes {', '.join(POSTED)}; GET takes {', '.join(ASKED)}.")
            return failed(path, 404, "not_found_error", "not_found", message)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_BYTES_MAX:
                message = f"The body is larger than {BODY_BYTES_MAX} bytes."
                return failed(path, 413, "invalid_request_error", "body_too_large", message)
        if "content-encoding" in request.headers:
            message = "Compressed bodies are not read here: `model` says which replica to ask."
            return failed(path, 415, "invalid_request_error", "unsupported_media_type", message)
        headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        query = f"?{request.url.query}" if request.url.query else ""
        call = Call(request.method, path + query, headers, body)
        parts = self.answer(path, call, await self.adapter_of(body))
        head = await anext(parts)
        if head.body is None:
            return StreamingResponse(parts, head.status, head.headers)
        if path == "/v1/models" and head.status == 200:
            head.body = await asyncio.to_thread(self.with_adapters, head.body)
        return Response(head.body, head.status, head.headers)

    async def adapter_of(self, body):
        """The adapter that a request names, or nothing: then any replica will do, and says what is
        wrong with it."""
        try:
            name = json.loads(body)["model"]
        except (ValueError, KeyError, TypeError):
            return ""
        is_name = isinstance(name, str) and name and PurePosixPath(name).parts == (name,)
        is_there = is_name and name not in (".", "..") and "\0" not in name
        there = is_there and await asyncio.to_thread((self.adapters / name).is_dir)
        return name if there else ""

    def with_adapters(self, body):
        """The base's card, and one like it for each adapter that may be asked for."""
        listed = json.loads(body)
        base = next(card for card in listed["data"] if card["parent"] is None)
        names = sorted(entry.name for entry in self.adapters.iterdir() if entry.is_dir())
        cards = [{**base, "id": name, "root": name, "parent": base["id"]} for name in names]
        return json.dumps({**listed, "data": [base, *cards]}).encode()

    async def answer(self, path, call, adapter):
        """A `Head` and, of a stream, its events, whatever becomes of replicas meanwhile."""
        until, pause = time.monotonic() + RETRY_SECONDS_MAX, PAUSE_SECONDS_MIN
        # Whether the client has the head of a stream, and whether it has events of an answer.
        is_open, is_begun = False, False
        for tries in itertools.count(1):
            try:
                async with aclosing(self.attempt(call, adapter)) as parts:
                    async for part in parts:
                        if not isinstance(part, Head):
                            # Comments, which keep a connection open, are no part of an answer.
                            is_begun = is_begun or b"data:" in part
                            yield part
                        elif not is_open:
                            part.headers["x-tessera-tries"] = str(tries)
                            yield part
                            is_open = part.body is None
                        elif part.body is not None:
                            # Only this try has found out that the request is refused.
                            yield event(path, "retry_refused", part.body.decode())
                return
            except LOST as error:
                lost = error
            except BackPressureError as error:
                lost, until = error, 0
            if is_begun or time.monotonic() > until:
                print(f"{path}: lost a replica: {lost!r}", flush=True)
                message = "The replica that answered is gone; ask again."
                if is_open:
                    yield event(path, "replica_lost", message)
                else:
                    kind, code = "server_error", "no_replica"
                    message = "No replica answers now; ask again later."
                    reply = failed(path, 503, kind, code, message)
                    yield Head(503, {**reply.headers, "retry-after": "1"}, reply.body)
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)

    async def attempt(self, call, adapter):
        """One replica's answer.

        # Raises
        One of `LOST`, when it has none, or not all of it.
        """
        handle = self.replicas.options(stream=True, multiplexed_model_id=adapter)
        async for part in handle.answer.remote(call):
            if isinstance(part, Head) and part.status == ELSEWHERE:
                raise ServerLost(part.body)
            yield part


def failed(path, status, kind, code, message):
    """An error in the form that the path's clients read."""
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    if path.startswith("/v1/messages"):
        kinds = {404: "not_found_error", 413: "request_too_large", 503: "overloaded_error"}
        kind = kinds.get(status, "invalid_request_error")
        body = {"type": "error", "error": {"type": kind, "message": message}}
    return Response(json.dumps(body), status, media_type="application/json")


def event(path, code, message):
    """The last event of a stream that breaks, as the path's clients read it."""
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    if path == "/v1/messages":
        error = {"type": "error", "error": {"type": "api_error", "message": message}}
        return f"event: error\ndata: {json.dumps(error)}\n\n".encode()
    if path == "/v1/responses":
        error = {"type": "error", "code": code, "message": message, "param": None}
        return f"event: error\ndata: {json.dumps(error)}\n\n".encode()
    return f"data: {json.dumps({'error': error})}\n\n".encode()


def app(settings: Settings):
    """What `import_path` of config.yaml names."""
    return Front.bind(settings, Replica.bind(settings))
