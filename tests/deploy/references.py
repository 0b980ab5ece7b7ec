"""What no schema says of the manifests: that they fit each other, and the server that they start.

Each check yields what is wrong with one overlay, as texts. `Server` is what is known of the server.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

import yaml

from manifests import (ROOT, SERVER, containers, environment, flag, has, pod_labels, ports, spec)

NAMESPACE = "tessera"
# What an operator marks pods and namespaces with, and a gateway its own pods.
CLIENT = "tessera.client"
GATEWAY = "gateway.networking.k8s.io/gateway-name"
# `CANCEL_MS` of src/http/server.rs, and what a slow node may take beside.
CANCEL_SECONDS, SPARE_SECONDS = 2, 5
# What the picker's scorers read of /metrics, with the labels that they look at.
PICKER_READS = {
    "lora-affinity-scorer": ("vllm:lora_requests_info", "running_lora_adapters",
                             "waiting_lora_adapters", "max_lora"),
    "queue-scorer": ("vllm:num_requests_waiting",),
    "kv-cache-utilization-scorer": ("vllm:kv_cache_usage_perc",),
    "running-requests-size-scorer": ("vllm:num_requests_running",),
    "prefix-cache-scorer": ("vllm:cache_config_info", "block_size", "num_gpu_blocks"),
}
# The picker scores by vLLM's names on pods that it takes for vLLM's.
ENGINE = ("llm-d.ai/engine-type", "vllm")
# Objects without a namespace.
OF_THE_CLUSTER = ("Namespace",)


@dataclass
class Server:
    """What `tessera serve --help`, docs/ and Cargo.toml say."""

    flags: dict  # of --help: name to its environment variable
    routes: set  # that anybody may GET
    metrics: dict  # docs/metrics.md: name to labels
    version: str
    sequences_max: dict  # default of --max-num-seqs by device


def selectors(all, _):
    """Whoever selects pods or services finds some."""
    for one in all.all("Deployment"):
        wanted = one["spec"]["selector"]["matchLabels"]
        if not has(pod_labels(one), wanted):
            yield f"{name(one)} selects pods that are not its own"
        for spread in spec(one).get("topologySpreadConstraints", []):
            if not has(pod_labels(one), spread["labelSelector"]["matchLabels"]):
                yield f"{name(one)} spreads other pods than its own"
    pickers = {"Service": lambda s: s["selector"],
               "PodDisruptionBudget": lambda s: s["selector"]["matchLabels"],
               "NetworkPolicy": lambda s: s["podSelector"]["matchLabels"],
               "InferencePool": lambda s: s["selector"]["matchLabels"]}
    for kind, labels in pickers.items():
        for one in all.all(kind):
            if len(all.pods(labels(one["spec"]))) != 1:
                yield f"{name(one)} must select the pods of one Deployment"
    for one in all.all("ServiceMonitor"):
        if len(all.services(one["spec"]["selector"]["matchLabels"])) != 1:
            yield f"{name(one)} must select one Service"
    for one in all.all("NetworkPolicy"):
        for rule in one["spec"].get("ingress", []):
            for peer in rule.get("from", []):
                yield from unknown_peer(all, one, peer.get("podSelector"))


def unknown_peer(all, policy, selector):
    labels = (selector or {}).get("matchLabels", {CLIENT: "true"})
    gateway = labels.get(GATEWAY)
    if gateway is not None and all.find("Gateway", gateway) is None:
        yield f"{name(policy)} lets a gateway {gateway} in, which is not there"
    if gateway is None and CLIENT not in labels and not all.pods(labels):
        yield f"{name(policy)} lets pods in that are not there: {labels}"


def port_names(all, _):
    """Ports that are named are there, and numbers are those of the pods."""
    for one in all.all("Deployment"):
        known = ports(one)
        for container in containers(one):
            for probe, what in probes(container):
                asked = what.get("httpGet", what.get("grpc", {})).get("port")
                if asked not in known and asked not in known.values():
                    yield f"{name(one)}: {probe} asks at a port {asked}, which is not there"
    for one in all.all("Service"):
        pods = all.pods(one["spec"]["selector"])
        known = {port for pod in pods for port in ports(pod)}
        for port in one["spec"]["ports"]:
            if port["targetPort"] not in known:
                yield f"{name(one)} leads to a port {port['targetPort']}, which is not there"
    for one in all.all("NetworkPolicy"):
        known = {port for pod in all.pods(one["spec"]["podSelector"]["matchLabels"])
                 for port in ports(pod)}
        for rule in one["spec"].get("ingress", []):
            for port in rule["ports"]:
                if port["port"] not in known:
                    yield f"{name(one)} opens a port {port['port']}, which is not there"
    for one in all.all("ServiceMonitor"):
        services = all.services(one["spec"]["selector"]["matchLabels"])
        known = {port["name"] for service in services for port in service["spec"]["ports"]}
        for end in one["spec"]["endpoints"]:
            if end["port"] not in known:
                yield f"{name(one)} asks at a port {end['port']}, which is not there"
    for one in all.all("InferencePool"):
        pods = all.pods(one["spec"]["selector"]["matchLabels"])
        known = {number for pod in pods for number in ports(pod).values()}
        for port in one["spec"]["targetPorts"]:
            if port["number"] not in known:
                yield f"{name(one)} leads to port {port['number']}, which is not there"
    told = environment(all.container()).get("TESSERA_PORT")
    if told != str(ports(all.server()).get("http")):
        yield f"the server listens on {told} and its port is {ports(all.server())}"


def named_objects(all, _):
    """Objects that are named are there."""
    for one in all.all("Deployment"):
        pod = spec(one)
        if all.find("ServiceAccount", pod["serviceAccountName"]) is None:
            yield f"{name(one)}: there is no ServiceAccount {pod['serviceAccountName']}"
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for container in containers(one):
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{name(one)} mounts {mount['name']}, which is no volume"
        for volume in volumes.values():
            config = volume.get("configMap", {}).get("name")
            if config and all.find("ConfigMap", config) is None:
                yield f"{name(one)}: there is no ConfigMap {config}"
    for one in all.all("RoleBinding"):
        for kind, wanted in [("Role", one["roleRef"]), *[(s["kind"], s) for s in one["subjects"]]]:
            if all.find(kind, wanted["name"]) is None:
                yield f"{name(one)}: there is no {kind} {wanted['name']}"
    wanted = []
    for one in all.all("ScaledObject"):
        wanted.append((one, one["spec"]["scaleTargetRef"]))
    for one in all.all("InferenceObjective"):
        wanted.append((one, one["spec"]["poolRef"]))
    for one in all.all("HTTPRoute"):
        wanted += [(one, {"kind": "Gateway", **parent}) for parent in one["spec"]["parentRefs"]]
        wanted += [(one, back) for rule in one["spec"]["rules"] for back in rule["backendRefs"]]
    for one, ref in wanted:
        if all.find(ref["kind"], ref["name"]) is None:
            yield f"{name(one)}: there is no {ref['kind']} {ref['name']}"
    for one in all.all("DestinationRule"):
        host = one["spec"]["host"].removesuffix(f".{NAMESPACE}.svc.cluster.local")
        if all.find("Service", host) is None:
            yield f"{name(one)}: there is no Service {one['spec']['host']}"
    for one in all.all("InferencePool"):
        ref = one["spec"]["endpointPickerRef"]
        service = all.find("Service", ref["name"])
        numbers = [port["port"] for port in service["spec"]["ports"]] if service else []
        if ref["port"]["number"] not in numbers:
            yield f"{name(one)}: no Service {ref['name']} has port {ref['port']['number']}"


def namespaces(all, _):
    for one in all.objects:
        if one["kind"] not in OF_THE_CLUSTER and one["metadata"].get("namespace") != NAMESPACE:
            yield f"{name(one)} is not in the namespace {NAMESPACE}"


def probes_and_routes(all, server):
    """Probes, routes and scrapes ask for what the server has, and ask for the right thing."""
    asked = dict(probes(all.container()))
    if set(asked) != {"startupProbe", "readinessProbe", "livenessProbe"}:
        yield f"the server has the probes {sorted(asked)}"
    for probe, what in asked.items():
        path = what["httpGet"]["path"]
        if path not in server.routes:
            yield f"{probe} asks for {path}, which nobody may GET"
        if path == "/live":
            yield f"{probe} asks for {path}, which says nothing of the engine"
    for one in all.all("ServiceMonitor"):
        for end in one["spec"]["endpoints"]:
            if end.get("path", "/metrics") not in server.routes:
                yield f"{name(one)} scrapes {end['path']}"
    for one in all.all("HTTPRoute"):
        for rule in one["spec"]["rules"]:
            if any(match["path"]["value"] != "/v1" for match in rule["matches"]):
                yield f"{name(one)} leads more to the pods than /v1"


def drain(all, _):
    """A pod has the time that its requests have."""
    lifecycle = all.container().get("lifecycle", {})
    sleep = lifecycle.get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if sleep < SPARE_SECONDS:
        yield "the port closes before load balancers have heard of it: preStop must sleep"
    needed = sleep + all.settings()["drain-seconds"] + CANCEL_SECONDS + SPARE_SECONDS
    given = spec(all.server()).get("terminationGracePeriodSeconds", 30)
    if given < needed:
        yield f"a pod may need {needed} s to end and has {given}"


def flags(all, server):
    """Flags, variables and keys of the file are those of the server."""
    container = all.container()
    if container["args"][:1] != ["serve"]:
        yield f"the server's arguments are {container['args']}"
    for argument in container["args"]:
        if argument.startswith("--") and argument.partition("=")[0] not in server.flags:
            yield f"tessera serve has no flag {argument}"
    for variable in environment(container):
        if variable.startswith("TESSERA_") and variable not in server.flags.values():
            yield f"tessera serve reads no variable {variable}"
    for key in all.settings():
        if f"--{key}" not in server.flags and key != "model":
            yield f"tessera.toml has {key}, which is no flag"
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    for adapter in all.settings().get("adapter", []):
        place = PurePosixPath(adapter.partition("=")[2])
        if place.is_absolute() and not any(place.is_relative_to(mount) for mount in mounts):
            yield f"adapter {adapter} lies in no volume"


def images(all, server):
    """The server's image is one of this version, for the right device."""
    on_gpu = "nvidia.com/gpu" in all.container()["resources"].get("limits", {})
    wanted = f"{SERVER}:{server.version}{'-cuda' if on_gpu else ''}"
    if all.container()["image"] != wanted:
        yield f"the image is {all.container()['image']}, expected {wanted}"
    for one in all.all("Deployment"):
        for container in containers(one):
            if ":" not in container["image"] or container["image"].endswith(":latest"):
                yield f"{name(one)}: the image {container['image']} has no version"


def metrics(all, server):
    """What is read of /metrics is in docs/metrics.md."""
    for one in all.all("ScaledObject"):
        target = all.find("Deployment", one["spec"]["scaleTargetRef"]["name"])
        if target and "replicas" in target["spec"]:
            yield f"{name(target)} sets replicas, which {name(one)} sets too"
        running = 0
        for trigger in one["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            for metric in re.findall(r"[a-z]+:[a-z_]+", query):
                if metric not in server.metrics:
                    yield f"{name(one)} asks for {metric}, which docs/metrics.md does not have"
            labels = dict(re.findall(r'([a-z_]+)="([^"]*)"', query))
            service = all.find("Service", labels.get("service"))
            if service is None or labels.get("namespace") != NAMESPACE:
                yield f"{name(one)} asks for a Service that is not there: {query}"
            if "num_requests_running" in query:
                running = float(trigger["metadata"]["threshold"])
        places = all.settings().get("max-num-seqs", server.sequences_max["cpu"])
        if not 0 < running <= places:
            yield f"{name(one)}: {running} of {places} sequences run where a replica is added"
    yield from picker(all, server)


def picker(all, server):
    for one in all.all("InferencePool"):
        for pod in all.pods(one["spec"]["selector"]["matchLabels"]):
            if (pod_labels(pod) or {}).get(ENGINE[0]) != ENGINE[1]:
                yield f"{name(pod)} must have the label {ENGINE[0]}: {ENGINE[1]}"
        service = all.find("Service", one["spec"]["endpointPickerRef"]["name"])
        for deployment in all.pods(service["spec"]["selector"]) if service else []:
            container = spec(deployment)["containers"][0]
            if flag(container, "--pool-name") != one["metadata"]["name"]:
                yield f"{name(deployment)} picks for another pool"
            text = all.mounted(deployment, flag(container, "--config-file"))
            if text is None:
                yield f"{name(deployment)} has no file for --config-file"
                continue
            yield from scorers(deployment, yaml.safe_load(text), server)


def scorers(deployment, config, server):
    """`config` is an EndpointPickerConfig."""
    known = {plugin.get("name", plugin["type"]): plugin["type"] for plugin in config["plugins"]}
    used = [ref["pluginRef"] for profile in config["schedulingProfiles"]
            for ref in profile["plugins"]]
    if "lora-affinity-scorer" not in [known.get(ref) for ref in used]:
        yield f"{name(deployment)} does not look where an adapter is"
    for ref in used:
        if ref not in known:
            yield f"{name(deployment)} uses {ref}, which is none of its plugins"
            continue
        metric, *labels = PICKER_READS.get(known[ref], (None,))
        if metric and not set(labels) <= set(server.metrics.get(metric, [None])):
            yield f"{name(deployment)}: {ref} reads {metric} {labels}, which is not there"


def security(all, _):
    """Nobody is root, writes beside volumes, or gains rights."""
    for one in all.all("Deployment"):
        pod = spec(one)
        told = pod.get("securityContext", {})
        if not told.get("runAsNonRoot") or not told.get("runAsUser"):
            yield f"{name(one)} may run as root"
        if told.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name(one)} has no seccomp profile"
        for container in containers(one):
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{name(one)}: {container['name']} may gain privileges"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{name(one)}: {container['name']} may write into its image"
            if own.get("capabilities", {}).get("drop") != ["ALL"]:
                yield f"{name(one)}: {container['name']} keeps capabilities"
            if "memory" not in container.get("resources", {}).get("limits", {}):
                yield f"{name(one)}: {container['name']} has no limit of memory"
    standard = "baseline" if all.all("Gateway") else "restricted"
    for one in all.all("Namespace"):
        if not has(one["metadata"]["labels"], {"pod-security.kubernetes.io/enforce": standard}):
            yield f"{name(one)} does not hold its pods to the standard {standard}"
    if spec(all.server()).get("automountServiceAccountToken") is not False:
        yield "the server has a token of the cluster"
    image = (ROOT / "Dockerfile").read_text()
    if f"USER {spec(all.server())['securityContext'].get('runAsUser')}:" not in image:
        yield "the server runs as another user than the image's"
    writable = [mount["mountPath"] for mount in all.container()["volumeMounts"]
                if not mount.get("readOnly")]
    for variable in ("HF_HOME", "TESSERA_KERNEL_CACHE"):
        place = PurePosixPath(environment(all.container()).get(variable, "/"))
        if not any(place.is_relative_to(mount) for mount in writable):
            yield f"{variable} is {place}, where nothing can be written"


CHECKS = (selectors, port_names, named_objects, namespaces, probes_and_routes, drain, flags,
          images, metrics, security)


def probes(container):
    return [(key, container[key]) for key in ("startupProbe", "readinessProbe", "livenessProbe")
            if key in container]


def name(one):
    return f"{one['kind']} {one['metadata']['name']}"
