"""Ray, and nothing else: the one file that imports it.

Ray places, starts, watches and restarts processes. All of ours are detached, named actors in one namespace, so that
they outlive the controller and are found again by name; they are made ahead of need and used again for the next job.
The plain classes they wrap know nothing of it.
"""

import logging
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions

from worker import shared_memory
from worker.aggregator import ParameterAggregator
from worker.crew import Crew as WorkerCrew
from worker.crew import Remote
from worker.errors import ClusterLost, RemoteLost, TrainerLost
from worker.exchange import Exchange
from worker.gradient_worker import GradientWorker
from worker.object_exchange import ObjectExchange
from worker.plan import StepPlan, TrainerReport, TrainingPlan
from worker.recorder import Recorder
from worker.shared_memory import SharedMemoryExchange
from worker.trainer_host import Run

log = logging.getLogger(__name__)
NAMESPACE = "fallline"
SLOT = "worker_slots"
AUTO, OBJECTS = "auto", "objects"  # exchanges
ANSWER_S = 10.0  # an idle actor that does not answer within this is taken for dead, and killed
START_S = 60.0  # a new one may take this long
HEALTH = "health"  # an actor's second thread: answers who asks whether the process is alive, whatever the first does


@dataclass(frozen=True)
class Capacity:
    """What the cluster has, and how many worker slots no job holds."""

    cpus: int
    worker_slots: int
    free_worker_slots: int


@dataclass(frozen=True)
class Crew:
    """The actors of one job, by name."""

    trainer: str
    aggregator: str
    workers: tuple[str, ...]


class RayRemote:
    """An actor as the exchange sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.handle = _actor(name)

    def call(self, method: str, *arguments: Any, returns: int = 1) -> Any:
        return getattr(self.handle, method).options(num_returns=returns).remote(*arguments)


class RayTransport:
    """References of Ray's object store. New workers' names are added to `recruits`."""

    def __init__(self, recruits: list[str]) -> None:
        self._recruits = recruits

    def get(self, references: Sequence[Any]) -> list[Any]:
        try:
            return list(ray.get(list(references)))
        except exceptions.RayActorError as error:
            raise RemoteLost(str(error).split("\n")[0]) from error
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, exceptions.RayActorError):
                raise RemoteLost(str(error.cause).split("\n")[0]) from error
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except (exceptions.ObjectLostError, exceptions.OwnerDiedError) as error:
            raise RemoteLost(str(error).split("\n")[0]) from error

    def is_alive(self, remote: Remote) -> bool:
        return _answers(remote.name)

    def wait(self, references: Sequence[Any], seconds: float) -> None:
        ray.wait(list(references), timeout=seconds)

    def is_ready(self, reference: Any) -> bool:
        return bool(ray.wait([reference], timeout=0)[0])

    def recruit(self) -> Remote:
        name = _new_name("GradientWorker")
        self._recruits.append(name)  # before it exists: who lists the actors, then asks for the crew, finds it there
        _create(name)
        return RayRemote(name)

    def release(self, remote: Remote) -> None:
        """It stays among the job's actors, and goes back into the pool with them."""

    def dismiss(self, remote: Remote) -> None:
        _kill(remote.name)


class TrainerHost:
    """The actor in which a job's trainer runs."""

    def __init__(self) -> None:
        self._run: Run | None = None
        self._crew: Crew | None = None
        self._workers: list[str] = []

    def start(self, plan: TrainingPlan, attempt: int, crew: Crew, orphan_seconds: float, exchange: str) -> None:
        """Begin; returns at once."""
        self._crew, self._workers = crew, list(crew.workers)

        def open_exchange(recorder: Recorder, look: Callable[[], None]) -> Any:
            def opened(steps: StepPlan, seed: int) -> Exchange:
                transport = RayTransport(self._workers)
                remotes = [RayRemote(name) for name in crew.workers]
                workers = WorkerCrew(steps, remotes, transport, recorder.event, look=look)
                workers.admit(wait=True)
                if exchange != OBJECTS and shared_memory.suits(steps, workers):
                    return SharedMemoryExchange(steps, seed, workers, transport)
                return ObjectExchange(steps, seed, workers, RayRemote(crew.aggregator), transport)

            return opened

        self._run = Run(plan, attempt, len(crew.workers), open_exchange, orphan_seconds, self._abandon)

    def poll(self, acknowledged: int) -> TrainerReport | None:
        """The report; None when no job has been started here."""
        return None if self._run is None else self._run.poll(acknowledged)

    def cancel(self) -> None:
        """Ask the job to end."""
        if self._run is not None:
            self._run.cancel()

    def pause(self) -> None:
        """Ask the job to write a checkpoint and end."""
        if self._run is not None:
            self._run.pause()

    def scale(self, workers: int) -> None:
        """Ask the job to go on with so many workers."""
        if self._run is not None:
            self._run.scale(workers)

    def describe(self) -> tuple[str, int, Crew] | None:
        """Job, attempt and crew, workers recruited since included; None when no job has been started here."""
        if self._run is None or self._crew is None:
            return None
        crew = Crew(self._crew.trainer, self._crew.aggregator, tuple(self._workers))
        return self._run.job_id, self._run.attempt, crew

    def reset(self) -> None:
        """Forget the job, which has ended."""
        self._run = self._crew = None
        self._workers = []

    def _abandon(self) -> None:
        """The job ends without an outcome: end the crew, and this process with it."""
        assert self._crew is not None
        for name in (*self._workers, self._crew.aggregator):
            _kill(name)
        os._exit(1)


class TrainerHandle:
    """A started job, as the controller sees it. TrainerLost from any method when the trainer is gone."""

    def __init__(self, job_id: str, attempt: int, crew: Crew) -> None:
        self.job_id, self.attempt, self.crew = job_id, attempt, crew

    def poll(self, acknowledged: int) -> TrainerReport:
        """Where it stands. Updates up to number `acknowledged` are forgotten."""
        report = self._call("poll", acknowledged)
        if report is None or (report.job_id, report.attempt) != (self.job_id, self.attempt):
            raise TrainerLost(self.job_id, self.attempt)
        found: TrainerReport = report
        return found

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
        except (exceptions.RayActorError, RemoteLost) as error:
            raise TrainerLost(self.job_id, self.attempt) from error
        except exceptions.GetTimeoutError as error:
            _kill(self.crew.trainer)
            raise TrainerLost(self.job_id, self.attempt) from error
        except exceptions.RayTaskError:
            raise
        except exceptions.RayError as error:
            raise ClusterLost(str(error)) from error


class Cluster:
    """The controller's view: what there is, what runs, and a pool of actors that wait for jobs."""

    def __init__(self, address: str, orphan_seconds: float, exchange: str = AUTO) -> None:
        """Join the cluster at `address`. Raises ClusterLost when there is none.

        `exchange`: OBJECTS has gradients travel by object references even where shared memory would do.
        """
        self._orphan_seconds, self._exchange = orphan_seconds, exchange
        try:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="warning")
        except (ConnectionError, RuntimeError, exceptions.RayError) as error:
            raise ClusterLost(f"no cluster at {address}: {error}") from error
        self._idle: dict[str, list[str]] = {"TrainerHost": [], "ParameterAggregator": [], "GradientWorker": []}
        self._busy: dict[str, Crew] = {}  # by the trainer's name
        self._find()

    def capacity(self) -> Capacity:
        """CPUs and worker slots of the whole cluster; slots of idle workers count as free."""
        resources = ray.cluster_resources()
        slots = int(resources.get(SLOT, 0))
        held = sum(len(crew.workers) for crew in self._busy.values())
        return Capacity(int(resources.get("CPU", 1)), slots, max(slots - held, 0))

    def warm(self, trainers: int, workers: int) -> None:
        """Make actors ahead, until so many of each wait."""
        for kind, count in (("TrainerHost", trainers), ("ParameterAggregator", trainers), ("GradientWorker", workers)):
            while len(self._idle[kind]) < count:
                self._idle[kind].append(self._make(kind))

    def start(self, plan: TrainingPlan, attempt: int, workers: int) -> TrainerHandle:
        """Start the job on `workers` workers, from the pool as far as it goes. Raises TrainerLost, all ended again."""
        crew = Crew(
            self._take("TrainerHost"),
            self._take("ParameterAggregator"),
            tuple(self._take("GradientWorker") for _ in range(workers)),
        )
        self._busy[crew.trainer] = crew
        handle = TrainerHandle(plan.job_id, attempt, crew)
        try:
            handle._call("start", plan, attempt, crew, self._orphan_seconds, self._exchange, timeout=START_S)
        except TrainerLost:
            self.kill(handle)
            raise
        return handle

    def running(self) -> list[TrainerHandle]:
        """The jobs that were found running when this process joined, and those started since."""
        found = []
        for name in list(self._busy):
            described = _describe(name)
            if described is None:
                self._forget(name)
            else:
                found.append(TrainerHandle(*described))
        return found

    def release(self, handle: TrainerHandle) -> None:
        """Take the actors of a job that has ended back into the pool."""
        described = _describe(handle.crew.trainer)
        if described is None:  # it has died since it told how the job ended
            self._forget(handle.crew.trainer)
            return
        crew = described[2]
        ray.get(_actor(crew.trainer).reset.remote(), timeout=ANSWER_S)
        del self._busy[crew.trainer]
        self._idle["TrainerHost"].append(crew.trainer)
        for kind, names in (("ParameterAggregator", (crew.aggregator,)), ("GradientWorker", crew.workers)):
            self._idle[kind] += [name for name in names if _answers(name)]

    def kill(self, handle: TrainerHandle) -> None:
        """End all of a job's processes, whatever they do: after it was lost, say."""
        self._forget(handle.crew.trainer)

    def pids(self, handle: TrainerHandle) -> dict[str, int]:
        """The process of each of the job's actors that live, by the actor's name."""
        described = _describe(handle.crew.trainer)
        crew = handle.crew if described is None else described[2]
        found = {name: _pid(name) for name in (crew.trainer, crew.aggregator, *crew.workers)}
        return {name: pid for name, pid in found.items() if pid is not None}

    def close(self) -> None:
        """Leave the cluster; everything there goes on."""
        ray.shutdown()

    def _find(self) -> None:
        """Whatever an earlier controller left: trainers at work with their crews, and the rest as idle."""
        names = set(ray.util.list_named_actors())
        for name in sorted(names):
            if name.startswith("TrainerHost-") and (described := _describe(name)) is not None:
                self._busy[name] = described[2]
        for name in sorted(names - self._taken()):
            kind = name.split("-")[0]
            if kind in self._idle and _answers(name):
                self._idle[kind].append(name)

    def _taken(self) -> set[str]:
        """The actors of all jobs, workers that their trainers have recruited since included."""
        crews = list(self._busy.values())
        crews += [described[2] for described in map(_describe, self._busy) if described is not None]
        return {name for crew in crews for name in (crew.trainer, crew.aggregator, *crew.workers)}

    def _forget(self, trainer: str) -> None:
        """End a job's processes: its crew, and what its trainer had recruited, which nobody knows any more."""
        crew = self._busy.pop(trainer, None)
        for name in () if crew is None else (crew.trainer, crew.aggregator, *crew.workers):
            _kill(name)
        workers = {name for name in ray.util.list_named_actors() if name.startswith("GradientWorker-")}
        for name in workers - self._taken() - set(self._idle["GradientWorker"]):
            _kill(name)

    def _take(self, kind: str) -> str:
        while self._idle[kind]:
            name = self._idle[kind].pop()
            if _answers(name):
                return name
        return self._make(kind)

    def _make(self, kind: str) -> str:
        name = _new_name(kind)
        _create(name)
        return name


def _new_name(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:12]}"


def _create(name: str) -> None:
    """A detached actor of the class that `name` begins with. It may still be starting."""
    kind = {kind.__name__: kind for kind in (TrainerHost, ParameterAggregator, GradientWorker)}[name.split("-")[0]]
    resources = {SLOT: 1} if kind is GradientWorker else {}
    options = {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "num_cpus": 0, "resources": resources}
    # Calls run one at a time, in their order: they share the job's buffers. So max_concurrency stays 1, and the second
    # thread has a group of its own: a worker serves in its seat for as long as a job lasts.
    actor = ray.remote(concurrency_groups={HEALTH: 1})(kind)
    actor.options(max_restarts=0, max_task_retries=0, **options).remote()


def _actor(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError as error:
        raise RemoteLost(f"no actor {name}") from error


def _answers(name: str) -> bool:
    """Whether the actor is there and answers; one that does not is killed, if it was not gone before."""
    try:
        ray.get(_actor(name).__ray_ready__.options(concurrency_group=HEALTH).remote(), timeout=ANSWER_S)
    except (exceptions.GetTimeoutError, exceptions.RayActorError, RemoteLost):
        _kill(name)
        return False
    return True


def _describe(trainer: str) -> tuple[str, int, Crew] | None:
    try:
        found: tuple[str, int, Crew] | None = ray.get(_actor(trainer).describe.remote(), timeout=ANSWER_S)
    except (exceptions.RayActorError, exceptions.GetTimeoutError, RemoteLost):
        return None
    return found


def _pid(name: str) -> int | None:
    try:
        call = _actor(name).__ray_call__.options(concurrency_group=HEALTH)
        found: int = ray.get(call.remote(lambda _: os.getpid()), timeout=ANSWER_S)
    except (exceptions.RayActorError, exceptions.GetTimeoutError, RemoteLost):
        return None
    return found


def _kill(name: str) -> None:
    try:
        ray.kill(_actor(name), no_restart=True)
    except RemoteLost:
        return  # it is gone already
