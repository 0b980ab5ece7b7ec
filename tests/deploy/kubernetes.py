#!/usr/bin/env python3
"""Renders the manifests of deploy/kubernetes, validates them, checks that they fit each other and
the server, and that the checks find faults; then starts the server as a pod would.

    python3 tests/deploy/kubernetes.py TESSERA

TESSERA is the executable. Needs kubectl, and the packages of tests/deploy/kubernetes.txt. Nothing
here talks to a cluster.
"""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

from manifests import (KUBERNETES, ROOT, Manifests, check_kubectl, environment, render)
from mutations import MUTATIONS
from references import CHECKS, NAMESPACE, PICKER_READS, Server

HERE = Path(__file__).resolve().parent
# The oldest that has the sleep before SIGTERM without a feature gate, and the newest.
VERSIONS = ("1.30", "1.37")
OVERLAYS = {folder.name: folder for folder in sorted((KUBERNETES / "overlays").iterdir())}
COMPONENTS = sorted((KUBERNETES / "components").iterdir())


def schemas():
    """Our own of custom resources and of files, by kind."""
    return {path.stem: json.loads(path.read_text()) for path in (HERE / "schemas").glob("*.json")}


def told_of_server(binary):
    """What the executable and docs/ say of the server."""
    shown = subprocess.run([binary, "serve", "--help"], text=True, capture_output=True,
                           check=True).stdout
    flags = dict.fromkeys(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", shown, re.MULTILINE))
    variables = re.findall(r"(--[a-z-]+)(?:(?!\n +--).)*?\[env: (TESSERA_\w+)", shown, re.DOTALL)
    flags.update(variables)
    flags["MODEL"] = "TESSERA_MODEL"
    api = (ROOT / "docs/api.md").read_text()
    routes = re.findall(r"^\| `(/\S+)` \| ([A-Z, ]+) \| (.*) \|$", api, re.MULTILINE)
    page = (ROOT / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| `((?:vllm|tessera):\w+)` \| \w+ \| (.*?) \|", page, re.MULTILINE)
    places = re.search(r"run at once. Default: (\d+), and (\d+) on a GPU", shown)
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text())
    return Server(
        flags=flags,
        routes={path for path, methods, who in routes
                if "GET" in methods and who.startswith("open")},
        metrics={name: re.findall(r"`(\w+)`", labels) for name, labels in rows},
        version=cargo["package"]["version"],
        sequences_max={"cpu": int(places[1]), "gpu": int(places[2])},
    )


def faults(all, server, known):
    """What is wrong with an overlay, as texts. `known` are our own schemas."""
    found = [f"{where}: {text}" for where, text in invalid(all, known)]
    if found:
        # The other checks take for granted that fields are where they should be.
        return found
    return [text for check in CHECKS for text in check(all, server)]


def invalid(all, known):
    for one in all.objects:
        where = f"{one['kind']} {one['metadata']['name']}"
        if one["kind"] in known:
            yield from against(known[one["kind"]], one, where)
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{where}, Kubernetes {version}", error.message
            except kubernetes_validate.SchemaNotFoundError as error:
                yield where, error.message
        for file, text in one.get("data", {}).items() if one["kind"] == "ConfigMap" else []:
            if file.endswith(".toml"):
                tomllib.loads(text)
            else:
                inner = yaml.safe_load(text)
                yield from against(known[inner["kind"]], inner, f"{where}, {file}")


def against(schema, value, where):
    for error in jsonschema.Draft202012Validator(schema).iter_errors(value):
        yield where, f"{error.json_path}: {error.message}"


def with_component(component):
    """The CPU overlay with one more component, rendered."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        relative = lambda target: os.path.relpath(target, place.resolve())
        (place / "kustomization.yaml").write_text(yaml.safe_dump({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "namespace": NAMESPACE, "resources": [relative(OVERLAYS["cpu"])],
            "components": [relative(component)],
            "images": [{"name": "tessera-adapters", "newTag": "1"}]}))
        objects = render(place)
    all = Manifests(objects)
    if component.name == "autoscaling":
        # As its users do: an overlay with it leaves the number of pods alone.
        del all.server()["spec"]["replicas"]
    return all


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def start_as_pod(all, binary):
    """Starts the server with what a pod gives it, and asks what is asked there."""
    container = all.container()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "tessera.toml"
        config.write_text(all.mounted(all.server(), "/etc/tessera/tessera.toml"))
        arguments = [argument.replace("/etc/tessera/tessera.toml", str(config))
                     for argument in container["args"]]
        told = {name: value.replace("/data", folder)
                for name, value in environment(container).items()}
        # A pod has an address of its own; this machine may have other servers.
        told["TESSERA_PORT"] = "0"
        process = subprocess.Popen([binary, *arguments], text=True, stdout=subprocess.PIPE,
                                   env={"PATH": os.environ["PATH"], **told}, cwd="/")
        try:
            url = next(line.split()[1] for line in process.stdout if line.startswith("ready: "))
            url = url.removesuffix("/v1").replace("0.0.0.0", "127.0.0.1")
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                path = container[probe]["httpGet"]["path"]
                assert get(url + path)[0] == 200, f"{probe} fails"
            metrics = get(url + "/metrics")[1]
            for metric, *labels in PICKER_READS.values():
                lines = re.findall(rf"^{metric}\{{(.*)\}}", metrics, re.MULTILINE)
                assert lines, f"/metrics has no {metric}"
                assert all_in(labels, lines[0]), f"{metric} lacks one of {labels}: {lines[0]}"
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(timeout=40)
        assert status == 0, f"SIGTERM ended the server with {status}"


def all_in(labels, line):
    return all(f'{label}="' in line for label in labels)


def main():
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} PATH_TO_TESSERA")
    binary = str(Path(sys.argv[1]).resolve())
    check_kubectl()
    server, known = told_of_server(binary), schemas()
    rendered = {name: Manifests(render(folder)) for name, folder in OVERLAYS.items()}
    wrong = [f"{name}: {text}" for name, overlay in rendered.items()
             for text in faults(overlay, server, known)]
    for component in COMPONENTS:
        wrong += [f"{component.name}: {text}"
                  for text in faults(with_component(component), server, known)]
    checked = len(rendered) + len(COMPONENTS)
    for name, what, mutate in MUTATIONS:
        mutated = Manifests(copy.deepcopy(rendered[name].objects))
        mutate(mutated)
        if not faults(mutated, server, known):
            wrong.append(f"{name}: {what} is not found")
    if not wrong:
        start_as_pod(rendered["cpu"], binary)
    for text in wrong:
        print(f"failed: {text}")
    print(f"kubernetes: {checked} kustomizations, {len(MUTATIONS)} faults, {len(wrong)} failed")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
