"""A real Ray cluster of several nodes on this machine: what tests and benchmarks of the exchange over nodes run on.

Each node is what `ray start` makes of a machine: a raylet with an object store, worker slots, a temporary folder and
an address of its own (127.0.0.2, 127.0.0.3, ...: all of them loopback on Linux), and a home that no other node reads.
With `hosts` each is on a network of its own, with cables between them (benchmarks.hosts). Every process runs under a
launcher and is gone at the end, however that came.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.hosts import Host
from service import launcher
from service.child import Child
from service.embedded import Command, ray_environment
from service.ports import free_port, held, listens

START_S = 120.0
OBJECT_STORE_BYTES = 128 * 1024**2
# A node that is gone is noticed within two seconds: tests wait for it. Ray's own figures are 5 s, 3 s and 5 times.
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
}


class RayNode:
    """One node: `number` 0 is the head."""

    def __init__(self, number: int, address: str, home: Path, process: Child) -> None:
        self.number, self.address, self.home, self.process = number, address, home, process

    @property
    def raylet(self) -> int | None:
        """The pid of its raylet; None while it is not there."""
        for pid in launcher.descendants(self.process.pid):
            try:
                if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/raylet"):
                    return pid
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
        return None

    def kill(self) -> None:
        """SIGKILL to the raylet, once there is one: the rest of the node ends of itself, as Ray has it."""
        _wait(lambda: self.raylet)
        if (pid := self.raylet) is not None:
            os.kill(pid, signal.SIGKILL)


class RayNodes:
    """A head and `len(slots) - 1` further nodes, each with so many worker slots. A context manager."""

    def __init__(
        self,
        slots: Sequence[int],
        environ: Mapping[str, str],
        token: str,
        folder: Path,
        hosts: Sequence[Host] = (),
        of_nodes: Mapping[int, Mapping[str, str]] | None = None,
        own_cores: bool = False,
        at_first: int | None = None,
        **settings: str,
    ) -> None:
        """`folder`: below it lie the nodes' homes and logs. `settings`: further variables, of Ray; `of_nodes`: those of
        single nodes, by number. `hosts`: one a node, where there are any; whoever enters the block is on the first one
        then. `own_cores`: node k keeps to core k, as far as there are cores, as machines of their own would. Only
        `at_first` of them are started here, somebody else starts the rest."""
        environment = ray_environment(environ, token) | HEALTH_CHECKS | settings
        # It is what keeps Ray to 127.0.0.1, and to one node: here every address that is given is loopback.
        del environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]
        self._slots, self.environment, self._folder, self._hosts = slots, environment, folder, hosts
        self._of_nodes, self._own_cores, self._at_first = of_nodes or {}, own_cores, at_first or len(slots)
        port, self._held = free_port(self.ip(0)), ExitStack()
        self._held.enter_context(held(self.ip(0), port))
        self.address = f"{self.ip(0)}:{port}"
        self.nodes: list[RayNode] = []

    def __enter__(self) -> Self:
        try:
            self.nodes.append(self._start(0))
            host, _, port = self.address.rpartition(":")
            _wait(lambda: listens(host, int(port)))
            self.nodes += [self._start(number) for number in range(1, self._at_first)]
            for node in self.nodes:
                _wait(lambda node=node: node.raylet)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def restart(self, node: RayNode) -> None:
        """Start a node that was killed again, on the home that it has left; the head at its old address."""
        node.process.kill()
        node.process.wait(20)
        self.nodes[node.number] = self._start(node.number)

    def restart_ended(self) -> None:
        """Start those again that have ended by themselves, as a container engine or systemd would."""
        for node in list(self.nodes):
            if node.process.poll() is not None:
                self.restart(node)

    def command(self, number: int) -> Command:
        """What starts a node."""
        home = self._folder / f"home{number}"
        home.mkdir(exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix="fallline-", dir="/tmp"))
        options = {
            "node-ip-address": self.ip(number),
            "num-cpus": self._slots[number],
            "dashboard-agent-listen-port": 0,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "include-log-monitor": "false",
            "object-store-memory": OBJECT_STORE_BYTES,
            "resources": json.dumps({"worker_slots": self._slots[number]}),
            "temp-dir": temporary,
        }
        if number == 0:
            options |= {"port": self.address.rpartition(":")[2], "dashboard-port": free_port()}
            options["include-dashboard"] = "false"
            first = ["--head", "--no-monitor"]
        else:
            first = [f"--address={self.address}"]
        arguments = [str(Path(sys.executable).with_name("ray")), "start", *first, "--block", "--disable-usage-stats"]
        arguments += [f"--{name}={value}" for name, value in options.items()]
        environment = {**self.environment, "FALLLINE_HOME": str(home), **self._of_nodes.get(number, {})}
        return Command(arguments, environment, temporary, remove=temporary)

    def _start(self, number: int) -> RayNode:
        command = self.command(number)
        cores = sorted(os.sched_getaffinity(0))
        kept = {cores[number % len(cores)]} if self._own_cores else set(cores)
        with self._hosts[number].entered() if self._hosts else nullcontext(), _held_to(kept):
            process = Child(command, self._folder / f"node{number}.log", 0.0)
        return RayNode(number, self.ip(number), Path(command.environment["FALLLINE_HOME"]), process)

    def ip(self, number: int) -> str:
        """A node's address."""
        return self._hosts[number].address if self._hosts else f"127.0.0.{number + 2}"

    def _end(self) -> None:
        for node in reversed(self.nodes):
            node.process.kill()
        for node in self.nodes:
            node.process.wait(20)  # nothing of it is left then
        self._held.close()


@contextmanager
def _held_to(cores: set[int]) -> Iterator[None]:
    """What this thread starts meanwhile keeps to `cores`."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _wait(condition: Callable[[], object]) -> None:
    until = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"no node within {START_S:g} s")
        time.sleep(0.05)
