"""The RayCluster is held against KubeRay 1.4 and newer, by its sources: the fields that it knows, and the `ray start`
that it makes of them."""

import shlex
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from ray.scripts.scripts import start as ray_start

from .test_files import CONTAINERS, RAY_CLUSTER, SERVICES, ray_params

# Options that it hands on as `=true` or `=false`. Any other of these values is a switch to it: there, or left out.
HANDED_ON = {"1.4 to 1.6": {"log-color", "include-dashboard"}}
HANDED_ON["1.7"] = HANDED_ON["1.4 to 1.6"] | {"include-log-monitor"}


def schema(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """Of an object without further fields: strict decoding refuses them, and an API server drops them."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


OBJECT, INTEGER, TEXT = {"type": "object"}, {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, {"type": "string"}
RAY_START_PARAMS = {"type": "object", "additionalProperties": TEXT}
# Of the fields of 1.4's CRD those that we use. Pods and what belongs to containers have Kubernetes' own schema.
SPEC = schema(
    ("headGroupSpec",),
    rayVersion=TEXT,
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=schema(
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=INTEGER,
        env={"type": "array"},
        resources=OBJECT,
        securityContext=OBJECT,
    ),
    headGroupSpec=schema(("template",), rayStartParams=RAY_START_PARAMS, template=OBJECT),
    workerGroupSpecs={
        "type": "array",
        "items": schema(
            ("groupName", "minReplicas", "maxReplicas", "template"),
            groupName=TEXT,
            replicas=INTEGER,
            minReplicas=INTEGER,
            maxReplicas=INTEGER,
            rayStartParams=RAY_START_PARAMS,
            template=OBJECT,
        ),
    },
)


def test_kuberay_knows_our_fields() -> None:
    jsonschema.validate(RAY_CLUSTER, SPEC)


def test_the_autoscaler_gets_what_a_container_may_have() -> None:
    options = RAY_CLUSTER["autoscalerOptions"]
    container = {name: options[name] for name in ("env", "resources", "securityContext")}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "head"},
        "spec": {"containers": [{"name": "autoscaler", **container}]},
    }
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def kuberay_options(name: str, handed_on: set[str]) -> list[str]:
    """What it has a shell start a node with, as the shell splits it."""
    params = {
        "block": "true",
        "memory": str(int(CONTAINERS[name]["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30),
        "metrics-export-port": "8080",
        "dashboard-agent-listen-port": "52365",
    }
    if name == "ray-head":
        params |= {"dashboard-host": "0.0.0.0", "no-monitor": "true"}  # the autoscaler is a container of its own
    else:
        params |= {"address": "fallline-head-svc.fallline.svc.cluster.local:6379"}
    words = ["--head"] if name == "ray-head" else []
    for option, value in (params | ray_params(name)).items():
        if value not in ("true", "false") or option in handed_on:
            words.append(f"--{option}={value}")
        elif value == "true":
            words.append(f"--{option}")
    return shlex.split(" ".join(words))


@pytest.mark.parametrize("kuberay", HANDED_ON)
@pytest.mark.parametrize("name", ["ray-head", "ray-worker"])
def test_ray_start_understands_kuberay_as_it_does_compose(name: str, kuberay: str) -> None:
    """But for what KubeRay adds, and leaves out."""
    here = ray_start.make_context("ray start", SERVICES[name]["command"][2:]).params
    there = ray_start.make_context("ray start", kuberay_options(name, HANDED_ON[kuberay])).params
    own = {"memory", "metrics_export_port", "dashboard_agent_listen_port"}
    own |= {"port", "dashboard_host"} if name == "ray-head" else {"address"}
    own |= {"disable_usage_stats"}  # a variable says it, too
    own |= {"include_log_monitor"} if kuberay != "1.7" else set()
    assert {option for option, value in there.items() if value != here[option]} == own
