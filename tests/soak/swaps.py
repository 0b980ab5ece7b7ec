"""Adapters whose files are swapped underneath while they are loaded and asked: every answer is that
of one version, whole.

A swap never leaves a mixture on the disk that nobody could tell from an adapter: the config is away
while the tensors are replaced, or one rename replaces both.
"""

import asyncio
import collections
import json
import os
import shutil

from report import Faults, Row, counted
from serving import Server, small_model, synth
from wire import Broken, Hung

LOADERS, CLIENTS = 50, 40
# Answers that are compared, and loads that are answered 200 at least.
ANSWERS = 40_000
VERSIONS = 3
SWAP_SECONDS = 0.004
TOKENS = 24
PROMPTS = ("The fox", "What does an owl eat?", "x")
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# What a load may say of files that are away or under way: a link may have nothing at its end.
LOAD_REFUSALS = {"adapter_not_found", "invalid_adapter", "adapter_changing", "path_outside_root"}


def write_versions(trial, model, at):
    """Versions of one shape, whose configs and tensors both differ, and their mixtures."""
    for number in range(VERSIONS):
        folder = at / f"v{number}"
        synth(trial.binary, "adapter", folder, "--model", model, "--kind", "lora", "--rank", 4,
              "--seed", number + 1)
        config = json.loads((folder / CONFIG).read_text())
        config["lora_alpha"] = config["lora_alpha"] * (number + 1) * 4
        (folder / CONFIG).write_text(json.dumps(config))
    for config in range(VERSIONS):
        for tensors in range(VERSIONS):
            if config != tensors:
                mixture = at / f"mixed{config}{tensors}"
                mixture.mkdir()
                shutil.copy(at / f"v{config}" / CONFIG, mixture)
                shutil.copy(at / f"v{tensors}" / TENSORS, mixture)


def replaced(link, target):
    """Points a link elsewhere in one step."""
    new = link.with_name(link.name + ".new")
    new.unlink(missing_ok=True)
    os.symlink(target, new)
    os.replace(new, link)


def by_link_to_directory(root, name, version):
    replaced(root / name, f"versions/{version}")


def by_renamed_directory(root, name, version):
    new, old = root / f"{name}.new", root / f"{name}.old"
    shutil.copytree(root / "versions" / version, new)
    if (root / name).exists():
        os.rename(root / name, old)
    os.rename(new, root / name)
    shutil.rmtree(old, ignore_errors=True)


def by_renamed_files(root, name, version):
    here = root / name
    here.mkdir(exist_ok=True)
    for file in (TENSORS, CONFIG):
        shutil.copy(root / "versions" / version / file, here / f"{file}.new")
    (here / CONFIG).unlink(missing_ok=True)
    os.replace(here / f"{TENSORS}.new", here / TENSORS)
    os.replace(here / f"{CONFIG}.new", here / CONFIG)


def by_rewritten_files(root, name, version):
    here = root / name
    here.mkdir(exist_ok=True)
    (here / CONFIG).write_bytes(b"")
    for file in (TENSORS, CONFIG):
        with open(here / file, "r+b" if (here / file).exists() else "wb") as out:
            out.write((root / "versions" / version / file).read_bytes())
            out.truncate()


def by_data_link(root, name, version):
    """As Kubernetes swaps what is mounted: files are links through one link."""
    here = root / name
    here.mkdir(exist_ok=True)
    replaced(here / "..data", f"../versions/{version}")
    for file in (TENSORS, CONFIG):
        if not (here / file).is_symlink():
            os.symlink(f"..data/{file}", here / file)


WAYS = {"linked": by_link_to_directory, "renamed": by_renamed_directory,
        "files": by_renamed_files, "rewritten": by_rewritten_files, "data": by_data_link}


def asking(name, prompt):
    return {"model": name, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0,
            "ignore_eos": True, "return_token_ids": True}


def tokens_of(answer):
    return tuple(answer.json()["choices"][0]["token_ids"])


async def outputs(server, kind, prompt):
    """What all adapters of a kind answer, each under a name of its own."""
    found = {}
    async with server.client() as client:
        for folder in sorted((server.root / "versions").glob(f"{kind}*")):
            body = {"lora_name": folder.name, "lora_path": f"versions/{folder.name}"}
            answer = await client.post("/v1/load_lora_adapter", body | {"load_inplace": True})
            assert answer.status == 200, answer
            answer = await client.post("/v1/completions", asking(folder.name, prompt))
            found[tokens_of(answer)] = folder.name
    return found


class Trials:
    """What came of the loads and of the answers."""

    def __init__(self, server, rng, answers):
        self.server, self.rng, self.left = server, rng, answers
        self.loads, self.answers, self.faults = (collections.Counter(), collections.Counter(),
                                                 Faults())
        self.right, self.mixed = {}, {}

    async def prepare(self):
        for prompt in PROMPTS:
            self.right[prompt] = await outputs(self.server, "v", prompt)
            self.mixed[prompt] = await outputs(self.server, "mixed", prompt)
            both = len(self.right[prompt].keys() | self.mixed[prompt].keys())
            assert both == VERSIONS * VERSIONS, "each version and mixture says something else"

    async def swap(self, name):
        while self.left > 0:
            version = f"v{self.rng.randrange(VERSIONS)}"
            await asyncio.to_thread(WAYS[name], self.server.root, name, version)
            await asyncio.sleep(self.rng.random() * 2 * SWAP_SECONDS)

    async def load(self):
        async with self.server.client() as client:
            while self.left > 0:
                name = self.rng.choice(list(WAYS))
                body = {"lora_name": name, "lora_path": name, "load_inplace": True}
                path = "/v1/load_lora_adapter"
                if self.rng.random() < 0.02:
                    path, body = "/v1/unload_lora_adapter", {"lora_name": name}
                await self.one(client, path, body, self.loaded)

    async def ask(self):
        async with self.server.client() as client:
            while self.left > 0:
                self.left -= 1
                name, prompt = self.rng.choice(list(WAYS)), self.rng.choice(PROMPTS)
                await self.one(client, "/v1/completions", asking(name, prompt),
                               lambda answer, name=name, prompt=prompt:
                               self.answered(answer, name, prompt))

    async def one(self, client, path, body, judge):
        try:
            judge(await client.post(path, body))
        except (Hung, Broken, OSError) as error:
            self.faults.add(type(error).__name__, f"{path} {error}")

    def loaded(self, answer):
        self.loads[answer.status] += 1
        if answer.status != 200 and answer.error_code() not in LOAD_REFUSALS:
            self.faults.add(f"a load was answered {answer.status}", answer)

    def answered(self, answer, name, prompt):
        if answer.status == 404:
            self.answers["unloaded"] += 1
        elif answer.status != 200:
            self.faults.add(f"a completion was answered {answer.status}", answer)
        elif tokens_of(answer) in self.right[prompt]:
            self.answers["right"] += 1
        elif tokens_of(answer) in self.mixed[prompt]:
            self.faults.add("mixture", f"{name}: {self.mixed[prompt][tokens_of(answer)]}")
        else:
            self.faults.add("wrong output", f"{name}: {tokens_of(answer)}")


async def prepared(trial, answers, **others):
    model = small_model(trial.binary, trial.folder / "swapped-model")
    root = trial.folder / "root"
    root.mkdir()
    write_versions(trial, model, root / "versions")
    server = Server(trial.binary, trial.folder, model, "--allow-runtime-adapters",
                    "--adapter-root", root, **others)
    server.root = root
    trials = Trials(server, trial.rng, answers)
    await trials.prepare()
    return server, trials


async def run(trials):
    await asyncio.gather(*(trials.swap(name) for name in WAYS),
                         *(trials.load() for _ in range(LOADERS)),
                         *(trials.ask() for _ in range(CLIENTS)))


async def part(trial):
    server, trials = await prepared(trial, trial.count(ANSWERS))
    await run(trials)
    faults = [*trials.faults, *await server.finished()]
    wrong, mixed = trials.faults.counts["wrong output"], trials.faults.counts["mixture"]
    found = f"loads: {counted(trials.loads)}; answers: {counted(trials.answers)}"
    return [Row("swapped files", f"{LOADERS} loaders, {CLIENTS} clients, {len(WAYS)} names", found,
                f"{wrong} wrong, {mixed} mixed (0, 0)", faults)]
