"""Faults that the checks of the manifests must find: each is made in a copy of one overlay."""

from manifests import containers, spec



def edited(kind, name, edit):
    """A fault in one object."""
    return lambda all: edit(all.find(kind, name))


def in_server(edit):
    return lambda all: edit(all.container())


def in_config(kind_name, old, new):
    """A fault in a file of a ConfigMap."""
    def edit(all):
        for one in all.all("ConfigMap"):
            if one["metadata"]["name"].startswith(kind_name):
                for key, text in one["data"].items():
                    assert old in text, f"{old} is not in {key}"
                    one["data"][key] = text.replace(old, new)
    return edit


def env(container, name):
    return next(one for one in container["env"] if one["name"] == name)


# Overlay, what is wrong, and how it comes to be so.
MUTATIONS = [
    ("cpu", "a field that Kubernetes does not know", in_server(
        lambda c: c["readinessProbe"].update(periodSecond=5))),
    ("cpu", "a number where a text must be", in_server(
        lambda c: env(c, "TESSERA_PORT").update(value=8000))),
    ("cpu", "a probe at a path that the server lacks", in_server(
        lambda c: c["readinessProbe"]["httpGet"].update(path="/healthz"))),
    ("cpu", "a probe at a path that wants a key", in_server(
        lambda c: c["readinessProbe"]["httpGet"].update(path="/v1/models"))),
    ("cpu", "a liveness probe that does not see the engine", in_server(
        lambda c: c["livenessProbe"]["httpGet"].update(path="/live"))),
    ("cpu", "a probe at a port that is not there", in_server(
        lambda c: c["livenessProbe"]["httpGet"].update(port="web"))),
    ("cpu", "no startup probe", in_server(lambda c: c.pop("startupProbe"))),
    ("cpu", "no sleep before SIGTERM", in_server(lambda c: c.pop("lifecycle"))),
    ("cpu", "too short a time to drain", lambda all: spec(all.server()).update(
        terminationGracePeriodSeconds=30)),
    ("cpu", "a drain that outlasts the pod", in_config(
        "tessera-config", "drain-seconds = 120", "drain-seconds = 600")),
    ("cpu", "a key of the file that is no flag", in_config(
        "tessera-config", "log-format", "log-form")),
    ("cpu", "a flag that the server lacks", in_server(
        lambda c: c["args"].append("--lora-modules"))),
    ("cpu", "a variable that the server does not read", in_server(
        lambda c: env(c, "TESSERA_HOST").update(name="TESSERA_BIND"))),
    ("cpu", "another port than the container's", in_server(
        lambda c: env(c, "TESSERA_PORT").update(value="8080"))),
    ("cpu", "a cache where nothing can be written", in_server(
        lambda c: env(c, "HF_HOME").update(value="/root/.cache"))),
    ("cpu", "an image that may be written", in_server(
        lambda c: c["securityContext"].update(readOnlyRootFilesystem=False))),
    ("cpu", "root", lambda all: spec(all.server())["securityContext"].update(runAsUser=0)),
    ("cpu", "a namespace that takes any pod", edited(
        "Namespace", "tessera", lambda one: one["metadata"]["labels"].pop(
            "pod-security.kubernetes.io/enforce"))),
    ("cpu", "an image of another version", in_server(lambda c: c.update(image="tessera:9.9.9"))),
    ("cpu", "a Service that finds no pod", edited(
        "Service", "tessera", lambda one: one["spec"]["selector"].update(app="tesera"))),
    ("cpu", "a Service that leads to no port", edited(
        "Service", "tessera", lambda one: one["spec"]["ports"][0].update(targetPort="web"))),
    ("cpu", "a budget for no pod", edited(
        "PodDisruptionBudget", "tessera",
        lambda one: one["spec"]["selector"]["matchLabels"].update(app="other"))),
    ("cpu", "a Deployment that selects other pods", lambda all: all.server()["spec"]["template"][
        "metadata"]["labels"].pop("app.kubernetes.io/component")),
    ("cpu", "an object in another namespace", edited(
        "Service", "tessera", lambda one: one["metadata"].update(namespace="default"))),
    ("gpu", "the image without CUDA", in_server(lambda c: c.update(image="tessera:0.1.0"))),
    ("gpu", "adapters that no volume has", in_config(
        "tessera-config", "/adapters/sql", "/models/sql")),
    ("gpu", "a volume that is not there", lambda all: spec(all.server())["volumes"].pop()),
    ("gpu", "a scrape of a Service that is not there", edited(
        "ServiceMonitor", "tessera",
        lambda one: one["spec"]["selector"]["matchLabels"].update(app="other"))),
    ("gpu", "a scrape at a port that is not there", edited(
        "ServiceMonitor", "tessera", lambda one: one["spec"]["endpoints"][0].update(port="web"))),
    ("gpu", "a scrape of another path", edited(
        "ServiceMonitor", "tessera",
        lambda one: one["spec"]["endpoints"][0].update(path="/metricz"))),
    ("gpu", "a field that a ServiceMonitor lacks", edited(
        "ServiceMonitor", "tessera",
        lambda one: one["spec"]["endpoints"][0].update(targetport=8000))),
    ("gpu", "a metric that is not there", edited(
        "ScaledObject", "tessera", lambda one: one["spec"]["triggers"][0]["metadata"].update(
            query='sum(vllm:requests_waiting{namespace="tessera",service="tessera"})'))),
    ("gpu", "a query for another Service", edited(
        "ScaledObject", "tessera", lambda one: one["spec"]["triggers"][0]["metadata"].update(
            query='sum(vllm:num_requests_waiting{namespace="tessera",service="llm"})'))),
    ("gpu", "a threshold that is a number", edited(
        "ScaledObject", "tessera",
        lambda one: one["spec"]["triggers"][0]["metadata"].update(threshold=8))),
    ("gpu", "a threshold that is never reached", in_config(
        "tessera-config", "max-num-seqs = 64", "max-num-seqs = 32")),
    ("gpu", "an autoscaler of nothing", edited(
        "ScaledObject", "tessera", lambda one: one["spec"]["scaleTargetRef"].update(name="llm"))),
    ("gpu", "replicas that undo the autoscaler's", lambda all: all.server()["spec"].update(
        replicas=2)),
    ("gateway", "a pool of no pod", edited(
        "InferencePool", "tessera",
        lambda one: one["spec"]["selector"]["matchLabels"].update(app="other"))),
    ("gateway", "a pool at another port", edited(
        "InferencePool", "tessera", lambda one: one["spec"]["targetPorts"][0].update(number=80))),
    ("gateway", "a pool as the alpha version wrote it", edited(
        "InferencePool", "tessera", lambda one: one["spec"].update(targetPortNumber=8000))),
    ("gateway", "a picker at another port", edited(
        "InferencePool", "tessera",
        lambda one: one["spec"]["endpointPickerRef"]["port"].update(number=9003))),
    ("gateway", "an objective of another group", edited(
        "InferenceObjective", "batch",
        lambda one: one.update(apiVersion="inference.networking.x-k8s.io/v1alpha2"))),
    ("gateway", "an objective of no pool", edited(
        "InferenceObjective", "batch", lambda one: one["spec"]["poolRef"].update(name="llm"))),
    ("gateway", "a route to no pool", edited(
        "HTTPRoute", "tessera",
        lambda one: one["spec"]["rules"][0]["backendRefs"][0].update(name="llm"))),
    ("gateway", "a route to /metrics as well", edited(
        "HTTPRoute", "tessera",
        lambda one: one["spec"]["rules"][0]["matches"][0]["path"].update(value="/"))),
    ("gateway", "pods that the picker cannot read", lambda all: all.server()["spec"]["template"][
        "metadata"]["labels"].pop("llm-d.ai/engine-type")),
    ("gateway", "a picker that does not look for adapters", in_config(
        "tessera-picker", "- pluginRef: lora-affinity-scorer", "- pluginRef: queue-scorer")),
    ("gateway", "a scorer that is not listed", in_config(
        "tessera-picker", "- type: queue-scorer", "- type: running-requests-size-scorer")),
    ("gateway", "a scorer that there is not", in_config(
        "tessera-picker", "type: queue-scorer", "type: queue-depth-scorer")),
    ("gateway", "a picker without its file", edited(
        "Deployment", "tessera-picker", lambda one: spec(one)["volumes"][0]["configMap"].update(
            name="picker"))),
    ("gateway", "a picker of another pool", edited(
        "Deployment", "tessera-picker",
        lambda one: containers(one)[0]["args"].__setitem__(0, "--pool-name=llm"))),
    ("gateway", "a picker without rights", edited(
        "RoleBinding", "tessera-picker", lambda one: one["roleRef"].update(name="picker"))),
    ("gateway", "a rule for another Service", edited(
        "DestinationRule", "tessera-picker", lambda one: one["spec"].update(
            host="tessera-picker.default.svc.cluster.local"))),
    ("gateway", "a gateway that may not come in", edited(
        "NetworkPolicy", "tessera-picker", lambda one: one["spec"]["ingress"][0]["from"][0][
            "podSelector"]["matchLabels"].update(
                {"gateway.networking.k8s.io/gateway-name": "other"}))),
]
