"""The cluster as the controller sees it: what there is, what runs, and how a job is started, asked and ended.

Everything there is an actor: detached and named, so that it outlives the controller and is found again; made ahead of
need, and used again for the next job (`worker.pool`). Ray itself is behind `worker.ray_actors`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from worker import ray_actors
from worker.errors import RemoteLost, TrainerLost
from worker.placement import PACK
from worker.plan import TrainerReport, TrainingPlan
from worker.pool import Crew, Pool, node_of
from worker.ray_actors import ACTORS, ANSWER_S
from worker.trainer_host import AUTO, LINKS

START_S = 60.0  # a new trainer may take this long


@dataclass(frozen=True)
class Capacity:
    """What the cluster has, and how many worker slots no job holds."""

    cpus: int
    worker_slots: int
    free_worker_slots: int


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

    def _call(self, method: str, *arguments: Any, seconds: float = ANSWER_S) -> Any:
        try:
            return ACTORS.ask_one(self.crew.trainer, seconds, method, *arguments)
        except RemoteLost as error:
            raise TrainerLost(self.job_id, self.attempt) from error


class Cluster:
    """What there is, what runs, and a pool of actors that wait for jobs."""

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
        ray_actors.join(address)
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
        if workers != self._demanded and ray_actors.may_grow():
            ray_actors.demand(workers)
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
            handle._call("start", plan, attempt, crew, most, self._orphan_seconds, exchange, seconds=START_S)
        except TrainerLost:
            self.kill(handle)
            raise
        return handle

    def _outgrows(self, crew: Crew, most: int) -> bool:
        """Whether the job may come to have workers on other nodes than its trainer's."""
        if most <= len(crew.workers) or not ray_actors.may_grow():
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
        ACTORS.wait_for([handle.crew.trainer for handle in handles], seconds, "save", seconds)

    def close(self) -> None:
        """Leave the cluster; everything there goes on."""
        ray_actors.leave()
