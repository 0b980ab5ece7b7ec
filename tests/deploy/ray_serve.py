#!/usr/bin/env python3
"""Runs deploy/ray on this machine with two replicas of the demo: adapters and who has them, drain,
scaling down and up, servers and replicas killed under load. Counts what was lost.

    python3 tests/deploy/ray_serve.py TESSERA [CHECK ...]

TESSERA is the executable, CHECK a name of `CHECKS`; without any, all run. Needs the packages of
tests/deploy/ray_serve.txt, in the environment of this Python.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import aiohttp
import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
DEMO = ROOT / "demo"
ADAPTERS = ("formal", "json", "pirate", "poet", "telegram")
# Fewer than there are on two replicas, so that some must make room.
ADAPTERS_PER_REPLICA = 2
CHAT = "/v1/chat/completions"
# The servers have one, which the replicas and the clients know.
KEY = "of-the-test"
SECONDS_MAX = 300


def request(model, stream=False, tokens=40, **more):
    """A chat whose answer is the same wherever it is computed."""
    return {"model": model, "stream": stream, "temperature": 0, "max_tokens": tokens,
            "messages": [{"role": "user", "content": "What does a fox eat?"}], **more}


def long(model):
    """A stream that takes seconds."""
    return request(model, stream=True, tokens=400, ignore_eos=True)


class Cluster:
    """Ray, and the application on it."""

    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder
        self.dashboard, self.port, gcs = free_ports(3)
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}",
                       "PYTHONPATH": str(ROOT / "deploy/ray"), "RAY_USAGE_STATS_ENABLED": "0",
                       "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "TESSERA_THREADS": "1",
                       "TESSERA_RAY_ADMIN_KEY": KEY}
        self.environment = environment
        self.log = open(folder / "ray.log", "w")
        self.ray = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", "--num-cpus=2",
             "--node-ip-address=127.0.0.1", f"--port={gcs}",
             f"--dashboard-port={self.dashboard}", f"--temp-dir={folder}/r",
             "--object-store-memory=100000000", "--disable-usage-stats"],
            env=environment, stdout=self.log, stderr=self.log, start_new_session=True)

    def deploy(self, replicas, wait=True):
        """Applies config.yaml with the demo in it, as its user would."""
        config = yaml.safe_load((ROOT / "deploy/ray/config.yaml").read_text())
        config["http_options"] = {"host": "127.0.0.1", "port": self.port}
        one, = config["applications"]
        one["args"] = {"model": str(DEMO / "model"), "adapters": str(DEMO / "adapters"),
                       "adapters_per_replica": ADAPTERS_PER_REPLICA, "executable": self.binary,
                       "arguments": ["--served-model-name", "demo", "--api-key", KEY]}
        for deployment in one["deployments"]:
            deployment["ray_actor_options"] = {"num_cpus": 0.2}
            deployment["health_check_period_s"] = 2
            if deployment["name"] == "Replica":
                deployment["num_replicas"] = replicas
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        until = time.monotonic() + SECONDS_MAX
        while True:
            done = subprocess.run(
                [BIN / "serve", "deploy", file, "-a", f"http://127.0.0.1:{self.dashboard}"],
                env=self.environment, text=True, capture_output=True)
            if done.returncode == 0:
                break
            assert time.monotonic() < until, done.stderr
            time.sleep(1)
        if wait:
            self.wait_for(replicas)

    def servers(self):
        """Processes that serve, with the address that each listens on."""
        found = []
        for process in psutil.Process(self.ray.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.name() == "tessera":
                    ports = [c.laddr.port for c in process.net_connections("tcp")
                             if c.status == psutil.CONN_LISTEN]
                    found += [(process, f"http://127.0.0.1:{port}") for port in ports]
        return found

    def wait_for(self, replicas):
        """Until so many replicas run, and the application answers."""
        until = time.monotonic() + SECONDS_MAX
        while time.monotonic() < until:
            done = subprocess.run(
                [BIN / "serve", "status", "-a", f"http://127.0.0.1:{self.dashboard}"],
                env=self.environment, text=True, capture_output=True)
            told = yaml.safe_load(done.stdout) if done.returncode == 0 else None
            one = (told or {}).get("applications", {}).get("tessera", {})
            running = one.get("deployments", {}).get("Replica", {}).get("replica_states", {})
            if (one.get("status") == "RUNNING" and running == {"RUNNING": replicas}
                    and len(self.servers()) == replicas):
                return
            time.sleep(0.5)
        raise AssertionError(f"no {replicas} replicas in {SECONDS_MAX} s: {done.stdout}")

    def stop(self):
        self.ray.send_signal(signal.SIGTERM)
        try:
            self.ray.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(self.ray.pid, signal.SIGKILL)
        self.log.close()


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Answer:
    """What a client has got: the status, the text, and how it ended."""

    def __init__(self, reply):
        self.status, self.replica = reply.status, reply.headers.get("x-tessera-replica")
        self.tries = int(reply.headers.get("x-tessera-tries", 0))
        self.text, self.end, self.error = "", None, None

    @property
    def is_whole(self):
        return self.status == 200 and self.end is not None


class Client:
    def __init__(self, session, url):
        self.session, self.url = session, url

    async def ask(self, body, path=CHAT, seen=None):
        """Sends a request and reads all of its answer; of a stream `seen` is told each event."""
        async with self.session.post(self.url + path, json=body) as reply:
            answer = Answer(reply)
            if reply.content_type != "text/event-stream":
                told = json.loads(await reply.read())
                if reply.status == 200:
                    choice = told["choices"][0]
                    answer.text, answer.end = choice["message"]["content"], choice["finish_reason"]
                answer.error = told.get("error")
                return answer
            async for line in reply.content:
                if not line.startswith(b"data: "):
                    continue
                if line.strip() == b"data: [DONE]":
                    answer.end = "done"
                    continue
                told = json.loads(line[6:])
                if "error" in told:
                    answer.error = told["error"]
                    continue
                answer.text += told["choices"][0]["delta"].get("content") or ""
                if seen:
                    seen(answer)
            return answer

    async def get(self, url):
        async with self.session.get(url) as reply:
            return await reply.text()

    async def held(self, cluster):
        """Names of the adapters that each server holds."""
        pages = [await self.get(url + "/v1/adapters") for _, url in cluster.servers()]
        return [sorted(card["id"] for card in json.loads(page)["data"]) for page in pages]


async def the_config_is_taken(client, cluster, texts):
    """The file as it is in the repository, which names a model that is not here."""
    sys.path.insert(0, str(ROOT / "deploy/ray"))
    from tessera_serve import Settings
    one, = yaml.safe_load((ROOT / "deploy/ray/config.yaml").read_text())["applications"]
    settings = Settings(**one["args"])
    shown = subprocess.run([cluster.binary, "serve", "--help"], text=True, capture_output=True,
                           check=True).stdout
    named = [argument for argument in settings.arguments if argument.startswith("--")]
    assert named and all(f"{argument} " in shown for argument in named), named
    drain = settings.arguments[settings.arguments.index("--drain-seconds") + 1]
    for deployment in one["deployments"]:
        assert deployment["graceful_shutdown_timeout_s"] > int(drain), deployment["name"]


async def one_replica_has_an_adapter(client, cluster, texts):
    answers = [await client.ask(request("pirate")) for _ in range(12)]
    assert all(one.text == texts["pirate"] for one in answers), answers[0].text
    assert len({one.replica for one in answers}) == 1, "its requests went to several replicas"
    held = await client.held(cluster)
    assert sorted(held) == [[], ["pirate"]], held


async def adapters_make_room_for_others(client, cluster, texts):
    models = [name for _ in range(6) for name in (*ADAPTERS, "demo")]
    answers = await asyncio.gather(*(client.ask(request(name)) for name in models))
    for name, one in zip(models, answers):
        assert one.status == 200 and one.text == texts[name], (name, one.status, one.error)
    held = await client.held(cluster)
    assert all(len(names) <= ADAPTERS_PER_REPLICA for names in held), held
    assert len({one.replica for one in answers}) == 2, "one replica has answered everything"


async def streams_and_other_routes(client, cluster, texts):
    for name in ("poet", "demo"):
        answer = await client.ask(request(name, stream=True))
        assert answer.is_whole and answer.text == texts[name], vars(answer)
    unknown = await client.ask(request("nobody"))
    assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")
    unknown = await client.ask(request("../model"))
    assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")
    gone = await client.ask({}, path="/v1/load_lora_adapter")
    assert (gone.status, gone.error["code"]) == (404, "not_found")
    held = await client.held(cluster)
    absent = next(name for name in ADAPTERS if not any(name in names for names in held))
    async with aiohttp.ClientSession() as session:
        stranger = await Client(session, cluster.url).ask(request(absent))
    assert (stranger.status, stranger.error["code"]) == (401, "invalid_api_key")
    assert await client.held(cluster) == held, "a stranger has had an adapter loaded"
    listed = json.loads(await client.get(cluster.url + "/v1/models"))["data"]
    assert sorted(card["id"] for card in listed) == sorted((*ADAPTERS, "demo"))
    body = {**request("pirate"), "max_tokens": 40}
    async with client.session.post(cluster.url + "/v1/messages", json=body) as reply:
        assert (await reply.json())["content"][0]["text"] == texts["pirate"]


async def a_client_that_leaves_stops_its_sequence(client, cluster, texts):
    began = asyncio.Event()
    task = asyncio.create_task(client.ask(long("demo"), seen=lambda _: began.set()))
    await asyncio.wait_for(began.wait(), SECONDS_MAX)
    task.cancel()
    for _ in range(40):
        pages = [await client.get(url + "/load") for _, url in cluster.servers()]
        if all(json.loads(page)["server_load"] == 0 for page in pages):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"sequences of nobody run: {pages}")


async def scaling_down_drains(client, cluster, texts):
    tasks = await begun(client, [long("demo")] * 6)
    cluster.deploy(1, wait=False)
    late = await asyncio.gather(*(client.ask(request(name)) for name in ADAPTERS))
    answers = await asyncio.gather(*tasks)
    assert len({one.replica for one in answers}) == 2, "the streams were on one replica"
    assert all(one.is_whole and one.text == answers[0].text for one in answers), "streams broke"
    assert all(one.text == texts[name] for name, one in zip(ADAPTERS, late)), "requests were lost"
    cluster.wait_for(1)


async def scaling_up_loses_nothing(client, cluster, texts):
    cluster.deploy(2, wait=False)
    answers = []
    while len(cluster.servers()) < 2:
        answers += await asyncio.gather(*(client.ask(request(name)) for name in ADAPTERS))
    cluster.wait_for(2)
    answers += await asyncio.gather(*(client.ask(request(name)) for name in ADAPTERS))
    for name, one in zip(ADAPTERS * len(answers), answers):
        assert one.text == texts[name], (name, one.status, one.error)


async def begun(client, bodies):
    """Streams that all have sent something."""
    seen = [asyncio.Event() for _ in bodies]
    tasks = [asyncio.create_task(client.ask(body, seen=lambda _, one=one: one.set()))
             for body, one in zip(bodies, seen)]
    await asyncio.wait_for(asyncio.gather(*(one.wait() for one in seen)), SECONDS_MAX)
    return tasks


async def killed(client, cluster, texts, victim):
    """Streams and whole answers are under way when a process is killed: `victim` says which."""
    streams = await begun(client, [long("demo")] * 6)
    whole = [asyncio.create_task(client.ask(request(name, tokens=60, ignore_eos=True)))
             for name in (*ADAPTERS, "demo") * 4]
    await asyncio.sleep(0.3)
    server, _ = cluster.servers()[0]
    process = victim(server)
    process.kill()
    late = [asyncio.create_task(client.ask(request(name, stream=True))) for name in ADAPTERS]
    answers = await asyncio.gather(*whole)
    for one in answers:
        assert one.is_whole, f"a request that could be sent again was lost: {vars(one)}"
    again = sum(one.tries > 1 for one in answers)
    assert again, "no request was on what was killed"
    for name, one in zip(ADAPTERS, await asyncio.gather(*late)):
        assert one.is_whole and one.text == texts[name], f"a new request was lost: {vars(one)}"
    ends = await asyncio.gather(*streams)
    lost = [one for one in ends if not one.is_whole]
    codes = [(one.error or {}).get("code") for one in lost]
    assert set(codes) <= {"replica_lost"}, f"streams end with {codes}"
    assert 0 < len(lost) < len(ends), f"{len(lost)} of {len(ends)} streams broke"
    print(f"{again} of {len(answers)} whole answers came from a second replica, "
          f"{len(lost)} of {len(ends)} streams broke", flush=True)
    for _ in range(50):
        if not server.is_running():
            break
        await asyncio.sleep(0.1)
    assert not server.is_running(), "the server of a replica that is gone runs on"
    cluster.wait_for(2)


async def a_server_is_killed(client, cluster, texts):
    await killed(client, cluster, texts, lambda server: server)


async def a_replica_is_killed(client, cluster, texts):
    await killed(client, cluster, texts, lambda server: server.parent())


async def a_node_that_is_killed_leaves_no_server(client, cluster, texts):
    """The last check: what it kills is Ray itself, which could have ended the servers."""
    servers = [process for process, _ in cluster.servers()]
    ray = psutil.Process(cluster.ray.pid).children(recursive=True)
    node, = [process for process in ray if process.name() == "raylet"]
    for process in (node, *(server.parent() for server in servers)):
        process.kill()
    _, alive = psutil.wait_procs(servers, timeout=60)
    for process in alive:
        process.kill()
    assert not alive, f"{len(alive)} servers run on"


CHECKS = (the_config_is_taken, one_replica_has_an_adapter, adapters_make_room_for_others,
          streams_and_other_routes, a_client_that_leaves_stops_its_sequence, scaling_down_drains,
          scaling_up_loses_nothing, a_server_is_killed, a_replica_is_killed,
          a_node_that_is_killed_leaves_no_server)


def expected(binary):
    """What one server without Ray answers, by model."""
    flags = [flag for name in ADAPTERS for flag in ("--adapter", f"{name}={DEMO}/adapters/{name}")]
    command = [binary, "serve", DEMO / "model", "--served-model-name", "demo", "--port", "0"]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)
    try:
        url = next(line.split()[1] for line in process.stdout if line.startswith("ready: "))

        async def ask():
            async with aiohttp.ClientSession() as session:
                client = Client(session, url.removesuffix("/v1"))
                return {name: (await client.ask(request(name))).text
                        for name in (*ADAPTERS, "demo")}
        return asyncio.run(ask())
    finally:
        process.terminate()
        process.wait()


async def check(cluster, texts, checks):
    failed = 0
    timeout = aiohttp.ClientTimeout(total=SECONDS_MAX)
    headers = {"authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
        client = Client(session, cluster.url)
        for one in checks:
            began = time.monotonic()
            try:
                await one(client, cluster, texts)
                print(f"passed: {one.__name__} ({time.monotonic() - began:.0f} s)", flush=True)
            except Exception as error:
                failed += 1
                print(f"failed: {one.__name__}: {type(error).__name__}: {error}", flush=True)
    return failed


def main():
    names = [one.__name__ for one in CHECKS]
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= set(names):
        raise SystemExit(f"usage: {sys.argv[0]} PATH_TO_TESSERA [{' | '.join(names)}]")
    checks = [one for one in CHECKS if one.__name__ in (sys.argv[2:] or names)]
    binary = str(Path(sys.argv[1]).resolve())
    texts = expected(binary)
    # Ray's sockets have paths of at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(binary, Path(folder))
        try:
            cluster.deploy(2)
            failed = asyncio.run(check(cluster, texts, checks))
        finally:
            cluster.stop()
    print(f"ray {version('ray')}: {len(checks) - failed} passed, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
