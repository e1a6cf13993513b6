"""Ray, and nothing else: the one file that imports it.

Ray places, starts, watches and restarts processes. All of ours are detached, named actors in one namespace, so that
they outlive the controller and are found again by name; they are made ahead of need and used again for the next job
(`worker.pool`). The plain classes they wrap know nothing of it.
"""

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray import exceptions
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from worker.aggregator import ParameterAggregator
from worker.errors import ClusterLost, RemoteLost, TrainerLost
from worker.gradient_worker import GradientWorker
from worker.placement import PACK, Node
from worker.plan import TrainerReport, TrainingPlan
from worker.pool import AGGREGATOR, NOBODY, TRAINER, WORKER, Capacity, Crew, Pool, kind_of, node_of, recruit
from worker.trainer_host import AUTO, LINKS, TrainerHost
from worker.transport import Reference, Remote

log = logging.getLogger(__name__)
NAMESPACE = "fallline"
SLOT, HOME = "worker_slots", "home"  # resources that `ray start` gives a node
GONE = "f" * 56  # a node that there is not
ALONE = "127.0.0.1"  # the address of a node that no other machine can reach
ANSWER_S = 10.0  # an idle actor that does not answer within this is taken for dead, and killed
START_S = 60.0  # a new one may take this long
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
            raise RemoteLost(str(error).split("\n")[0]) from error
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, LOSSES):
                raise RemoteLost(str(error.cause).split("\n")[0]) from error
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


class TrainerHandle:
    """A started job, as the controller sees it. TrainerLost from any method when the trainer is gone."""

    def __init__(self, job_id: str, attempt: int, crew: Crew, saw: Callable[[str, tuple[str, ...]], Crew]) -> None:
        """`saw` is told of the trainer's workers at each poll, and says what the crew is by now."""
        self.job_id, self.attempt, self.crew, self._saw = job_id, attempt, crew, saw

    @property
    def workers(self) -> int:
        """How many it had when it was heard last, those that are about to join included."""
        return len(self.crew.workers)

    def poll(self, acknowledged: int) -> TrainerReport:
        """Where it stands. Updates up to number `acknowledged` are forgotten."""
        found: tuple[TrainerReport, tuple[str, ...]] | None = self._call("poll", acknowledged)
        if found is None or (found[0].job_id, found[0].attempt) != (self.job_id, self.attempt):
            raise TrainerLost(self.job_id, self.attempt)
        report, workers = found
        self.crew = self._saw(self.crew.trainer, workers)
        return report

    def cancel(self) -> None:
        """Ask the job to end; its outcome will be `cancelled`, or another that came before."""
        self._call("cancel")

    def scale(self, workers: int) -> None:
        """Ask the job to go on with so many workers, at most one a shard; an event tells when they take part.

        ValueError for less than one.
        """
        self._call("scale", workers)

    def pause(self) -> None:
        """Ask the job to write a checkpoint and end; its outcome will be `paused`, or another that came before."""
        self._call("pause")

    def _call(self, method: str, *arguments: Any, timeout: float = ANSWER_S) -> Any:
        try:
            return ray.get(getattr(_actor(self.crew.trainer), method).remote(*arguments), timeout=timeout)
        except (*LOSSES, RemoteLost) as error:
            raise TrainerLost(self.job_id, self.attempt) from error
        except exceptions.GetTimeoutError as error:
            ACTORS.kill(self.crew.trainer)
            raise TrainerLost(self.job_id, self.attempt) from error
        except exceptions.RayTaskError:
            raise
        except exceptions.RayError as error:
            raise ClusterLost(str(error)) from error


class Cluster:
    """The controller's view: what there is, what runs, and a pool of actors that wait for jobs."""

    def __init__(
        self,
        address: str,
        orphan_seconds: float,
        exchange: str = AUTO,
        placement: str = PACK,
        rest_seconds: float = math.inf,
    ) -> None:
        """Join the cluster at `address`. Raises ClusterLost when there is none.

        `exchange`: OBJECTS has gradients travel by object references even where shared memory would do. `placement`:
        worker.placement.STRATEGIES. `rest_seconds`: worker.pool.Pool.
        """
        self._orphan_seconds, self._exchange = orphan_seconds, exchange
        try:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="warning")
        except (ConnectionError, RuntimeError, exceptions.RayError) as error:
            raise ClusterLost(f"no cluster at {address}: {error}") from error
        self._pool = Pool(ACTORS, placement, rest_seconds)
        self._demanded: int | None = None

    def capacity(self) -> Capacity:
        """CPUs and worker slots of the whole cluster; slots of idle workers count as free."""
        nodes = ACTORS.nodes()
        slots = sum(node.slots for node in nodes)
        return Capacity(sum(node.cpus for node in nodes), slots, max(slots - self._pool.held, 0))

    def warm(self, trainers: int, workers: int) -> None:
        """Make actors ahead, until so many of each wait."""
        self._pool.warm(trainers, workers)

    def demand(self, workers: int) -> None:
        """Have the cluster's autoscaler, if it has one, see to nodes for so many workers in all, a core each; those
        that are there count. It stays so until another number is demanded. Raises ClusterLost."""
        if workers == self._demanded or not self._may_grow():
            return
        try:
            request_resources(bundles=[{"CPU": 1, SLOT: 1}] * workers)
        except exceptions.RayError as error:
            raise ClusterLost(str(error)) from error
        self._demanded = workers

    def start(
        self, plan: TrainingPlan, attempt: int, workers: int, most: int | None = None, idle_cores: bool = False
    ) -> TrainerHandle:
        """Start the job on `workers` workers, from the pool as far as it goes. Raises TrainerLost, all ended again.

        Where there are not as many, or not `most`, those that are missing join when they are to be had, with
        `idle_cores` only where a core is idle. A job that may outgrow its trainer's node has no shared memory.
        """
        crew, most = self._pool.take(workers, idle_cores), max(workers, most or 0)
        exchange = LINKS if self._exchange == AUTO and self._outgrows(crew, most) else self._exchange
        handle = TrainerHandle(plan.job_id, attempt, crew, self._pool.saw)
        try:
            handle._call("start", plan, attempt, crew, most, self._orphan_seconds, exchange, timeout=START_S)
        except TrainerLost:
            self.kill(handle)
            raise
        return handle

    @staticmethod
    def _may_grow() -> bool:
        """Whether others could join: none can where all is bound to this machine alone."""
        return any(node["NodeManagerAddress"] != ALONE for node in ray.nodes())

    def _outgrows(self, crew: Crew, most: int) -> bool:
        """Whether the job may come to have workers on other nodes than its trainer's."""
        if most <= len(crew.workers) or not self._may_grow():
            return False
        return most > sum(min(node.cpus, node.slots) for node in ACTORS.nodes() if node.name == node_of(crew.trainer))

    def running(self) -> list[TrainerHandle]:
        """The jobs that were found running when this process joined, and those started since."""
        found = ACTORS.described(self._pool.busy)
        for name in self._pool.busy.keys() - found.keys():
            self._pool.forget(name)
        return [TrainerHandle(*described, self._pool.saw) for described in found.values()]

    def release(self, handle: TrainerHandle) -> None:
        """Take the actors of a job that has ended back into the pool."""
        self._pool.release(handle.crew.trainer)

    def kill(self, handle: TrainerHandle) -> None:
        """End all of a job's processes, whatever they do: after it was lost, say."""
        self._pool.forget(handle.crew.trainer)

    def save(self, handles: Sequence[TrainerHandle], seconds: float) -> None:
        """Have the jobs write checkpoints, all at once, and go on; waits for them, at most `seconds`."""
        calls = []
        for handle in handles:
            with suppress(RemoteLost):
                calls.append(_actor(handle.crew.trainer).save.remote(seconds))
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=seconds)

    def pids(self, handle: TrainerHandle) -> dict[str, int]:
        """The process of each of the job's actors that live, by the actor's name."""
        crew = ACTORS.crews([handle.crew.trainer]).get(handle.crew.trainer, handle.crew)
        found = {name: _pid(name) for name in crew.all}
        return {name: pid for name, pid in found.items() if pid is not None}

    def close(self) -> None:
        """Leave the cluster; everything there goes on."""
        ray.shutdown()


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
        return self._ask(workers, seconds, "__ray_call__", lambda worker: worker.holder)

    def crews(self, trainers: Iterable[str]) -> dict[str, Crew]:
        return {name: crew for name, (_, _, crew) in self.described(trainers).items()}

    def described(self, trainers: Iterable[str]) -> dict[str, tuple[str, int, Crew]]:
        """Job, attempt and crew of each that runs one."""
        described = self._ask(trainers, ANSWER_S, "describe", thread=None)
        return {name: found for name, found in described.items() if found is not None}

    def reset(self, trainer: str) -> None:
        ray.get(_actor(trainer).reset.remote(), timeout=ANSWER_S)

    def kill(self, name: str) -> None:
        with suppress(RemoteLost):  # it is gone already
            ray.kill(_actor(name), no_restart=True)

    def _ask(
        self, names: Iterable[str], seconds: float, method: str, *arguments: Any, thread: str | None = HEALTH
    ) -> dict[str, Any]:
        """The answers of the actors' `thread` that are there within `seconds`, by name."""
        calls = {}
        for name in names:
            with suppress(RemoteLost):
                calls[_on(thread, name, method).remote(*arguments)] = name
        ready = ray.wait(list(calls), num_returns=len(calls), timeout=seconds)[0] if calls else []
        found = {}
        for call in ready:
            with suppress(*LOSSES):  # dead: silent
                found[calls[call]] = ray.get(call)
        return found

    def _ask_or_kill(
        self, names: Sequence[str], method: str, *arguments: Any, thread: str | None = HEALTH
    ) -> dict[str, Any]:
        """The answers that are there within ANSWER_S; who gives none is killed."""
        found = self._ask(names, ANSWER_S, method, *arguments, thread=thread)
        for name in names:
            if name not in found:
                self.kill(name)
        return found


ACTORS = RayActors()


def chunk_of(trainer: str, folder: str, name: str, offset: int) -> bytes:
    """A part of a file of the trainer's, by way of the object stores of its node and of this process's."""
    try:
        found: bytes = ray.get(_actor(trainer).chunk.remote(folder, name, offset))
    except LOSSES as error:
        raise RemoteLost(str(error).split("\n")[0]) from error
    return found


def _short(node_id: str) -> str:
    """A node's id as names have it."""
    return node_id[:8]


def _actor(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError as error:
        raise RemoteLost(f"no actor {name}") from error


def _on(thread: str | None, name: str, method: str) -> Any:
    found = getattr(_actor(name), method)
    return found if thread is None else found.options(concurrency_group=thread)


def _pid(name: str) -> int | None:
    try:
        found: int = ray.get(_on(HEALTH, name, "__ray_call__").remote(lambda _: os.getpid()), timeout=ANSWER_S)
    except (exceptions.GetTimeoutError, *LOSSES, RemoteLost):
        return None
    return found
