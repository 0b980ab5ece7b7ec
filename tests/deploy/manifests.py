"""Objects of Kubernetes as kustomize renders them, and what of them belongs together."""

import json
import shutil
import subprocess
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
# The first whose kustomize knows `labels` without selectors and `replicas` in components.
KUBECTL_MINOR_MIN = 27
SERVER = "tessera"


def check_kubectl():
    """Ends with what to do where there is no kubectl that is new enough."""
    if shutil.which("kubectl") is None:
        raise SystemExit("there is no kubectl: install kubernetes-client (Debian 13 or newer)")
    told = subprocess.run(["kubectl", "version", "--client", "-o", "json"], text=True,
                          capture_output=True, check=True).stdout
    minor = int(json.loads(told)["clientVersion"]["minor"].rstrip("+"))
    if minor < KUBECTL_MINOR_MIN:
        raise SystemExit(f"kubectl is 1.{minor}; 1.{KUBECTL_MINOR_MIN} or newer is needed")


def render(folder):
    """All objects of a kustomization."""
    done = subprocess.run(["kubectl", "kustomize", folder], text=True, capture_output=True)
    if done.returncode != 0:
        raise SystemExit(f"{folder} does not render: {done.stderr}")
    # kustomize warns of what it will not take for ever.
    assert not done.stderr, f"{folder}: {done.stderr}"
    return list(yaml.safe_load_all(done.stdout))


class Manifests:
    """The objects of one overlay."""

    def __init__(self, objects):
        self.objects = objects

    def all(self, kind):
        return [one for one in self.objects if one["kind"] == kind]

    def find(self, kind, name):
        """The object of a kind and a name, or None."""
        named = (one for one in self.all(kind) if one["metadata"]["name"] == name)
        return next(named, None)

    def pods(self, labels):
        """Deployments whose pods have these labels."""
        return [one for one in self.all("Deployment") if has(pod_labels(one), labels)]

    def services(self, labels):
        return [one for one in self.all("Service") if has(one["metadata"].get("labels"), labels)]

    def server(self):
        """The Deployment that runs tessera."""
        return self.find("Deployment", SERVER)

    def settings(self):
        """What the server's TOML file says."""
        return tomllib.loads(self.mounted(self.server(), flag(self.container(), "--config")))

    def container(self):
        """The server's container."""
        return next(one for one in spec(self.server())["containers"] if one["name"] == SERVER)

    def mounted(self, deployment, path):
        """The text of a file that a pod's first container has from a ConfigMap, or None."""
        pod = spec(deployment)
        for mount in pod["containers"][0].get("volumeMounts", []):
            volume = next((v for v in pod["volumes"] if v["name"] == mount["name"]), {})
            name = volume.get("configMap", {}).get("name")
            found = self.find("ConfigMap", name) if name else None
            if found and Path(path).parent == Path(mount["mountPath"]):
                return found["data"].get(Path(path).name)
        return None


def spec(deployment):
    """The pod of a Deployment."""
    return deployment["spec"]["template"]["spec"]


def pod_labels(deployment):
    return deployment["spec"]["template"]["metadata"].get("labels")


def containers(deployment):
    pod = spec(deployment)
    return pod.get("initContainers", []) + pod["containers"]


def ports(deployment):
    """Ports of a pod by name."""
    return {port["name"]: port["containerPort"]
            for one in containers(deployment) for port in one.get("ports", [])}


def environment(container):
    """Variables of a container that have their value here."""
    return {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}


def flag(container, name):
    """The value that an argument of a container has, in either spelling."""
    arguments = container.get("args", [])
    for place, argument in enumerate(arguments):
        if argument == name:
            return arguments[place + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def has(labels, wanted):
    return all((labels or {}).get(key) == value for key, value in (wanted or {}).items())
