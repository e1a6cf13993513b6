"""Ray, and nothing else: the one file that imports it.

Ray places, starts, watches and restarts processes. All of ours are detached, named actors in one namespace, so that
they outlive the controller and are found again by name. The plain classes they wrap know nothing of it.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray import exceptions
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from worker.aggregator import ParameterAggregator
from worker.errors import ClusterLost, RemoteLost
from worker.gradient_worker import GradientWorker
from worker.placement import Node
from worker.pool import AGGREGATOR, NOBODY, TRAINER, WORKER, Crew, kind_of, node_of, recruit
from worker.trainer_host import TrainerHost
from worker.transport import Reference, Remote

NAMESPACE = "fallline"
SLOT, HOME = "worker_slots", "home"  # resources that `ray start` gives a node
GONE = "f" * 56  # a node that there is not
ALONE = "127.0.0.1"  # the address of a node that no other machine can reach
ANSWER_S = 10.0  # an idle actor that does not answer within this is taken for dead, and killed
# What a call ends with when a process that it depends on, its node or what it has said is gone.
LOSSES = (exceptions.RayActorError, exceptions.ActorUnschedulableError, exceptions.ObjectLostError)
HEALTH = "health"  # an actor's second thread: answers who asks whether the process is alive, whatever the first does


# How often this process has called Ray for an exchange, by what it asked: none of it is to happen inside a step.
CALLS: Counter[str] = Counter()


class RayRemote:
    """An actor as the exchange sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.handle = _actor(name)

    def call(self, method: str, *arguments: Any, returns: int = 1) -> Any:
        CALLS[method] += 1
        return getattr(self.handle, method).options(num_returns=returns).remote(*arguments)

    def call_beside(self, method: str, *arguments: Any) -> Any:
        CALLS[method] += 1
        return getattr(self.handle, method).options(concurrency_group=HEALTH).remote(*arguments)


class RayTransport:
    """References of Ray's object store, and the workers of a trainer: their names are in `workers` from before they are
    its own until they are nobody's."""

    def __init__(self, crew: Crew, workers: list[str]) -> None:
        self._crew, self._workers = crew, workers
        self._leaving: dict[str, Reference] = {}

    def remote(self, name: str) -> RayRemote:
        return RayRemote(name)

    def get(self, references: Sequence[Any]) -> list[Any]:
        CALLS["get"] += 1
        try:
            return list(ray.get(list(references)))
        except LOSSES as error:
            raise _lost(error) from error
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, LOSSES):
                raise _lost(error.cause) from error
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise

    def address(self, remote: Remote) -> str:
        for node in ray.nodes():
            if _short(node["NodeID"]) == node_of(remote.name):
                return str(node["NodeManagerAddress"])
        raise RemoteLost(f"the node of {remote.name} is gone")

    def alive(self, remotes: Sequence[Remote]) -> set[str]:
        CALLS["alive"] += 1
        return ACTORS.answering([remote.name for remote in remotes])

    def wait(self, references: Sequence[Any], seconds: float) -> bool:
        CALLS["wait"] += 1
        if references:
            return bool(ray.wait(list(references), timeout=seconds)[0])
        time.sleep(seconds)  # nothing tells when a worker is to be had: who waits asks again
        return False

    def is_ready(self, reference: Any) -> bool:
        CALLS["is_ready"] += 1
        return bool(ray.wait([reference], timeout=0)[0])

    def recruit(self, beside: bool) -> Remote | None:
        CALLS["recruit"] += 1
        self.forget_leavers()
        name = recruit(ACTORS, self._crew, self._workers, beside)
        return None if name is None else self.remote(name)

    def release(self, remote: Remote, detached: Reference) -> None:
        self._leaving[remote.name] = detached

    def dismiss(self, remote: Remote) -> None:
        CALLS["dismiss"] += 1
        ACTORS.kill(remote.name)
        self._workers.remove(remote.name)

    def forget_leavers(self) -> None:
        """Those that have detached by now are nobody's, and no worker of this trainer."""
        for name, detached in list(self._leaving.items()):
            if self.is_ready(detached) and self._leaving.pop(name, None) is not None:
                self._workers.remove(name)


class RayActors:
    """All actors of the namespace (`worker.pool.Actors`)."""

    def names(self) -> set[str]:
        return set(ray.util.list_named_actors())

    def nodes(self) -> list[Node]:
        own = ray.get_runtime_context().get_node_id()
        alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"] != own)
        return [
            Node(
                _short(node["NodeID"]),
                int(node["Resources"].get("CPU", 0)),
                int(node["Resources"].get(SLOT, 0)),
                has_home=node["NodeID"] == own or HOME in node["Resources"],
            )
            for node in alive
        ]

    def create(self, name: str, holder: str = NOBODY) -> None:
        kind, *arguments = {
            TRAINER: (TrainerHost, RayTransport, self.kill),
            AGGREGATOR: (ParameterAggregator,),
            WORKER: (GradientWorker, holder, chunk_of),
        }[kind_of(name)]
        resources = {SLOT: 1} if kind_of(name) == WORKER else {}
        options: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "num_cpus": 0}
        # Calls run one at a time, in their order: they share the job's buffers. So max_concurrency stays 1, and the
        # second thread has a group of its own: a worker serves in its seat for as long as a job lasts.
        actor = ray.remote(concurrency_groups={HEALTH: 1})(kind)
        ids = [node["NodeID"] for node in ray.nodes() if _short(node["NodeID"]) == node_of(name)]
        # Of a node that is gone meanwhile Ray has never heard: the actor is dead as soon as it is made.
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy((ids or [GONE])[0], soft=False)
        actor.options(max_restarts=0, max_task_retries=0, resources=resources, **options).remote(*arguments)

    def answering(self, names: Sequence[str]) -> set[str]:
        return set(self._ask_or_kill(names, "__ray_ready__"))

    def ended(self, aggregators: Iterable[str]) -> set[str]:
        """By the thread that works: its health alone would not tell that it waits for a job that is over."""
        return set(self._ask_or_kill(list(aggregators), "end", thread=None))

    def hold(self, worker: str, holder: str) -> bool:
        return bool(self._ask_or_kill([worker], "hold", holder).get(worker))

    def holders(self, workers: Iterable[str], seconds: float) -> dict[str, str]:
        return self.ask(workers, seconds, "__ray_call__", lambda worker: worker.holder)

    def crews(self, trainers: Iterable[str]) -> dict[str, Crew]:
        return {name: crew for name, (_, _, crew) in self.described(trainers).items()}

    def described(self, trainers: Iterable[str]) -> dict[str, tuple[str, int, Crew]]:
        """Job, attempt and crew of each that runs one."""
        described = self.ask(trainers, ANSWER_S, "describe", thread=None)
        return {name: found for name, found in described.items() if found is not None}

    def ask_one(self, name: str, seconds: float, method: str, *arguments: Any) -> Any:
        """What it answers, or raises. RemoteLost: it is gone, or killed for its silence. ClusterLost."""
        try:
            return ray.get(getattr(_actor(name), method).remote(*arguments), timeout=seconds)
        except LOSSES as error:
            raise _lost(error) from error
        except exceptions.GetTimeoutError as error:
            self.kill(name)
            raise RemoteLost(f"no answer from {name}") from error
        except exceptions.RayTaskError:
            raise
        except exceptions.RayError as error:
            raise ClusterLost(str(error)) from error

    def reset(self, trainer: str) -> None:
        ray.get(_actor(trainer).reset.remote(), timeout=ANSWER_S)

    def kill(self, name: str) -> None:
        with suppress(RemoteLost):  # it is gone already
            ray.kill(_actor(name), no_restart=True)

    def ask(
        self, names: Iterable[str], seconds: float, method: str, *arguments: Any, thread: str | None = HEALTH
    ) -> dict[str, Any]:
        """The answers of the actors' `thread` that are there within `seconds`, by name."""
        found = {}
        for name, call in self._answers(names, seconds, method, *arguments, thread=thread):
            with suppress(*LOSSES):  # dead: silent
                found[name] = ray.get(call)
        return found

    def wait_for(self, names: Iterable[str], seconds: float, method: str, *arguments: Any) -> None:
        """Have them do it, all at once; return when all have, or failed, or after `seconds`."""
        self._answers(names, seconds, method, *arguments, thread=None)

    def _answers(
        self, names: Iterable[str], seconds: float, method: str, *arguments: Any, thread: str | None
    ) -> list[tuple[str, Any]]:
        """Each that has answered within `seconds`, or is dead, and the reference of its answer."""
        calls = {}
        for name in names:
            with suppress(RemoteLost):
                call = getattr(_actor(name), method).options(concurrency_group=thread).remote(*arguments)
                calls[call] = name
        ready = ray.wait(list(calls), num_returns=len(calls), timeout=seconds)[0] if calls else []
        return [(calls[call], call) for call in ready]

    def _ask_or_kill(
        self, names: Sequence[str], method: str, *arguments: Any, thread: str | None = HEALTH
    ) -> dict[str, Any]:
        """The answers that are there within ANSWER_S; who gives none is killed."""
        found = self.ask(names, ANSWER_S, method, *arguments, thread=thread)
        for name in names:
            if name not in found:
                self.kill(name)
        return found


ACTORS = RayActors()


def join(address: str) -> None:
    """Join the cluster at `address`. Raises ClusterLost when there is none."""
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="warning")
    except (ConnectionError, RuntimeError, exceptions.RayError) as error:
        raise ClusterLost(f"no cluster at {address}: {error}") from error


def leave() -> None:
    """Leave it; everything there goes on."""
    ray.shutdown()


def may_grow() -> bool:
    """Whether others could join: none can where all is bound to this machine alone."""
    return any(node["NodeManagerAddress"] != ALONE for node in ray.nodes())


def demand(workers: int) -> None:
    """Have Ray's autoscaler, if there is one, see to nodes for so many workers in all. Raises ClusterLost."""
    try:
        request_resources(bundles=[{"CPU": 1, SLOT: 1}] * workers)
    except exceptions.RayError as error:
        raise ClusterLost(str(error)) from error


def chunk_of(trainer: str, folder: str, name: str, offset: int) -> bytes:
    """A part of a file of the trainer's, by way of the object stores of its node and of this process's."""
    try:
        found: bytes = ray.get(_actor(trainer).chunk.remote(folder, name, offset))
    except LOSSES as error:
        raise _lost(error) from error
    return found


def _lost(error: Exception) -> RemoteLost:
    """In the first line of Ray's many."""
    return RemoteLost(str(error).split("\n")[0])


def _short(node_id: str) -> str:
    """A node's id as names have it."""
    return node_id[:8]


def _actor(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError as error:
        raise RemoteLost(f"no actor {name}") from error
