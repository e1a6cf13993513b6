"""compose.yaml without a container engine: the very commands as plain processes, each in a folder and an environment
of its own, started in the order of `depends_on`, which waits for health checks as an engine does, and started again
whenever they end: `restart: unless-stopped`.

What an engine isolates is mapped instead: names of services to loopback addresses, their ports to free ones, volumes
and secrets to folders. Two options are added to `ray start`, for several nodes on one machine.
"""

import os
import re
import shlex
import shutil
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from ruamel.yaml import YAML

from service.client import FallLine
from service.embedded import new_token
from service.ports import LOOPBACK, free_port, held

from .container import Container

DEPLOY = Path(__file__).parents[2] / "deploy"
BIN = Path(sys.executable).parent
READY_S = 120.0
RESTART_S = 0.5  # how often it is looked for containers that have ended
OWN_PORTS = {"api": {8000: "FALLLINE_PORT"}, "mlflow": {5000: "FALLLINE_MLFLOW_PORT"}}
# Ray takes 127.0.0.1 for a machine that is alone and replaces it by an outward address; this one it leaves as it is.
RAY_NODE = "127.0.0.2"
RAY_START = f"ray start --node-ip-address={RAY_NODE}"


def read_yaml(path: Path) -> Any:
    """The one document of a file."""
    return YAML(typ="safe", pure=True).load(path)


def image_environment() -> dict[str, str]:
    """What the Dockerfile's ENV gives every part."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return dict(pair.split("=", 1) for line in re.findall(r"^ENV (.*)$", text, re.MULTILINE) for pair in line.split())


class Composition:
    """The services of compose.yaml, volumes below `folder`. A context manager, which ends all of them.

    To a test it is what a LocalService is: `url`, `home`, `database`, `endpoints`, `wait_until_ready`.
    """

    def __init__(self, folder: Path) -> None:
        self.services: dict[str, Any] = read_yaml(DEPLOY / "compose.yaml")["services"]
        self.folder = folder
        self._temporary = Path(tempfile.mkdtemp(prefix="fallline-", dir="/tmp"))  # sockets: paths end near 107 bytes
        self.secret = folder / "ray_token"
        self.secret.write_text(new_token())
        self._held = ExitStack()
        self._ports = {name: self._free_ports(name) for name in self.services}
        self.containers = {name: self._containers(name) for name in self.services}
        self.started: list[str] = []  # services, in their order
        self._stopping = threading.Event()
        self._restarts = threading.Thread(target=self._restart, name="restarts", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        """Start every service as soon as those are healthy that it depends on; returns when every one is."""
        self._restarts.start()
        while left := [name for name in self.services if name not in self.started]:
            ready = [name for name in left if self._depends_on(name) <= set(self.started)]
            assert ready, f"these wait for each other: {left}"
            for name in ready:
                for other, condition in self.services[name].get("depends_on", {}).items():
                    if condition["condition"] == "service_healthy":
                        self.wait_until_healthy(other)
                for container in self.containers[name]:
                    container.start()
                    if len(self.containers[name]) > 1:  # Ray's nodes choose sockets in a folder that is theirs together
                        container.wait_until_healthy()
                self.started.append(name)
        for name in self.started:
            self.wait_until_healthy(name)

    def wait_until_healthy(self, name: str) -> None:
        """Returns when every container of the service is."""
        for container in self.containers[name]:
            container.wait_until_healthy()

    def wait_until_ready(self) -> None:
        """Returns when the API says that every part is up."""
        until = time.monotonic() + READY_S
        with FallLine(self.url) as client:
            while not client.health()["ready"]:
                assert time.monotonic() < until, f"not ready: {client.health()}"
                time.sleep(0.2)  # polls a condition

    def running(self) -> list[Container]:
        """Those that have not ended."""
        return [container for each in self.containers.values() for container in each if container.is_running()]

    def down(self) -> None:
        """End every service, the last of them first; returns when nothing of them is left."""
        self._stopping.set()
        if self.started:
            self._restarts.join()
        children = [container.child for container in reversed(self.running()) if container.child is not None]
        for child in children:
            child.end()
        for child in children:
            child.wait(30)
        self._held.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def url(self) -> str:
        """Where the published port is."""
        return self._url("api", 8000)

    @property
    def home(self) -> Path:
        """The volume that all parts but MLflow have."""
        return self.folder / "volumes" / "home"

    @property
    def database(self) -> Path:
        """The store's file."""
        return self.folder / "volumes" / "store" / "fallline.db"

    @property
    def endpoints(self) -> dict[str, Any]:
        """Where its parts listen, and the pids of those that run; this process stands for the supervisor."""
        mains = {name: containers[0].main() for name, containers in self.containers.items()}
        pids = {name: pid for name, pid in mains.items() if pid is not None} | {"supervisor": os.getpid()}
        return {"api": self.url, "mlflow": self._url("mlflow", 5000), "pids": pids}

    @property
    def worker_slots(self) -> int:
        """Of all Ray workers."""
        return int(self.services["api"]["environment"]["FALLLINE_WORKER_SLOTS"])

    def _url(self, name: str, port: int) -> str:
        return f"http://{LOOPBACK}:{self._ports[name][port]}"

    def _restart(self) -> None:
        """What an engine does with containers that end."""
        while not self._stopping.wait(RESTART_S):
            for name in list(self.started):
                for container in self.containers[name]:
                    if not container.is_running():
                        container.start()

    def _depends_on(self, name: str) -> set[str]:
        return set(self.services[name].get("depends_on", {}))

    def _named_ports(self, name: str) -> set[int]:
        """Those that the service listens on, by its own words or by the image's default."""
        command = " ".join(self.services[name]["command"])
        return {int(port) for port in re.findall(r"port=([1-9]\d*)", command)} | set(OWN_PORTS.get(name, ()))

    def _free_ports(self, name: str) -> dict[int, int]:
        """Ports in their place, which are this composition's until it is down: each process of Ray's takes free ones,
        also while who is to listen there has not started yet, or starts again."""
        found = {}
        for port in self._named_ports(name):
            found[port] = free_port()
            for address in (LOOPBACK, RAY_NODE):
                self._held.enter_context(held(address, found[port]))
        return found

    def _containers(self, name: str) -> list[Container]:
        replicas = self.services[name].get("deploy", {}).get("replicas", 1)
        return [self._container(name, number) for number in range(1, replicas + 1)]

    def _container(self, name: str, number: int) -> Container:
        service, folder = self.services[name], self.folder / f"{name}-{number}"
        folder.mkdir()
        scratch = self._temporary / f"{name}-{number}"
        scratch.mkdir()
        ports = self._ports[name] if number == 1 else self._free_ports(name)

        def mapped(text: str) -> str:
            for volume in sorted(service["volumes"], key=len, reverse=True):
                source, target = volume.split(":")
                text = re.sub(rf"{re.escape(target)}(?![\w-])", str(self.folder / "volumes" / source), text)
            for other, its_ports in self._ports.items():
                for port, here in its_ports.items():
                    address = RAY_NODE if other.startswith("ray") else LOOPBACK
                    text = re.sub(rf"\b{other}:{port}\b", f"{address}:{here}", text)
            for port, here in ports.items():
                text = re.sub(rf"(port=|127\.0\.0\.1:|127\.0\.0\.1', ){port}\b", rf"\g<1>{here}", text)
            text = text.replace("0.0.0.0", LOOPBACK).replace("/run/secrets/ray_token", str(self.secret))
            return text.replace("ray start", RAY_START)

        environment = {**image_environment(), **service["environment"]}
        environment = {key: mapped(value) for key, value in environment.items()}
        environment |= {variable: str(ports[port]) for port, variable in OWN_PORTS.get(name, {}).items()}
        environment |= {"PATH": f"{BIN}:{os.defpath}", "TMPDIR": str(scratch), "RAY_TMPDIR": str(scratch)}
        command = shlex.split(mapped(shlex.join(service["command"])))
        if "--head" in command:
            command.append(f"--dashboard-port={free_port()}")
        health = [mapped(word) for word in service["healthcheck"]["test"][1:]]
        return Container(name, command, [str(BIN / health[0]), *health[1:]], environment, folder)
