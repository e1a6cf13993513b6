"""compose.yaml without a container engine: the very commands as plain processes, each in a folder and an environment
of its own, started in the order of `depends_on`, which waits for health checks as an engine does.

What an engine isolates is mapped instead: names of services to loopback addresses, their ports to free ones, volumes
and secrets to folders. Two options are added to `ray start`, for several nodes on one machine.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
from ruamel.yaml import YAML

from service.child import Child
from service.embedded import Command, new_token
from service.ports import LOOPBACK, free_port

from ..system.conftest import processes_below

DEPLOY = Path(__file__).parents[2] / "deploy"
BIN = Path(sys.executable).parent
HEALTHY_S = 120.0
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


@dataclass
class Container:
    """One service's process, in the place of a container."""

    name: str
    command: list[str]
    health: list[str]
    environment: dict[str, str]
    folder: Path
    child: Child | None = field(default=None, init=False)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(self) -> None:
        """Start it; returns at once. It ends with this process, and all it started with it."""
        arguments = [str(shutil.which(self.command[0], path=self.environment["PATH"])), *self.command[1:]]
        self.child = Child(Command(arguments, self.environment, self.folder), self.log, grace=5.0)

    def is_healthy(self) -> bool:
        """Whether its health check says so, in time."""
        try:
            found = subprocess.run(self.health, env=self.environment, cwd=self.folder, capture_output=True, timeout=30)
        except subprocess.TimeoutExpired:
            return False
        return found.returncode == 0

    def wait_until_healthy(self) -> None:
        """Returns when it is; fails after HEALTHY_S. One that has ended is started again: `restart: unless-stopped`."""
        until = time.monotonic() + HEALTHY_S
        while not self.is_healthy():
            assert time.monotonic() < until, f"{self.name} is not healthy:\n{self.log.read_text()[-3000:]}"
            if not self.is_running():
                self.start()
            time.sleep(0.2)  # as an engine asks, again and again

    def processes(self, title: str) -> list[int]:
        """The pids of its processes whose command line contains `title`."""
        assert self.child is not None
        return processes_below(self.child.pid, title)

    def is_running(self) -> bool:
        """Whether it has been started and has not ended since."""
        return self.child is not None and self.child.poll() is None

    def family(self) -> list[psutil.Process]:
        """All its processes; none of one that has ended."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.child.pid).children(recursive=True) if self.child is not None else []
        return []

    def kill(self) -> None:
        """All of it at once, as by a machine's loss; returns when nothing of it is left."""
        assert self.child is not None
        self.child.kill()
        self.child.wait(30)


class Composition:
    """The services of compose.yaml, volumes below `folder`. A context manager, which ends all of them."""

    def __init__(self, folder: Path) -> None:
        self.services: dict[str, Any] = read_yaml(DEPLOY / "compose.yaml")["services"]
        self.folder = folder
        self._temporary = Path(tempfile.mkdtemp(prefix="fallline-", dir="/tmp"))  # sockets: paths end near 107 bytes
        self.secret = folder / "ray_token"
        self.secret.write_text(new_token())
        self._ports = {name: {port: free_port() for port in self._named_ports(name)} for name in self.services}
        self.containers = {name: self._containers(name) for name in self.services}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> list[str]:
        """Start every service as soon as those are healthy that it depends on: their names, in the order of starting.

        Returns when every one is.
        """
        started: list[str] = []
        while left := [name for name in self.services if name not in started]:
            ready = [name for name in left if self._depends_on(name) <= set(started)]
            assert ready, f"these wait for each other: {left}"
            for name in ready:
                for other, condition in self.services[name].get("depends_on", {}).items():
                    if condition["condition"] == "service_healthy":
                        self.wait_until_healthy(other)
                for container in self.containers[name]:
                    container.start()
                started.append(name)
        for name in started:
            self.wait_until_healthy(name)
        return started

    def wait_until_healthy(self, name: str) -> None:
        """Returns when every container of the service is."""
        for container in self.containers[name]:
            container.wait_until_healthy()

    def running(self) -> list[Container]:
        """Those that have not ended."""
        return [container for each in self.containers.values() for container in each if container.is_running()]

    def down(self) -> None:
        """End every service, the last of them first; returns when nothing of them is left."""
        children = [container.child for container in reversed(self.running()) if container.child is not None]
        for child in children:
            child.end()
        for child in children:
            child.wait(30)
        shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def url(self) -> str:
        """Where the published port is."""
        return f"http://{LOOPBACK}:{self._ports['api'][8000]}"

    def _depends_on(self, name: str) -> set[str]:
        return set(self.services[name].get("depends_on", {}))

    def _named_ports(self, name: str) -> set[int]:
        """Those that the service listens on, by its own words or by the image's default."""
        command = " ".join(self.services[name]["command"])
        return {int(port) for port in re.findall(r"port=([1-9]\d*)", command)} | set(OWN_PORTS.get(name, ()))

    def _containers(self, name: str) -> list[Container]:
        replicas = self.services[name].get("deploy", {}).get("replicas", 1)
        return [self._container(name, number) for number in range(1, replicas + 1)]

    def _container(self, name: str, number: int) -> Container:
        service, folder = self.services[name], self.folder / f"{name}-{number}"
        folder.mkdir()
        scratch = self._temporary / f"{name}-{number}"
        scratch.mkdir()
        ports = self._ports[name] if number == 1 else {port: free_port() for port in self._ports[name]}

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
