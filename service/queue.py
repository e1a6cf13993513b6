"""The queue: which job is to be started next, and why the others wait."""

from collections.abc import Callable, Mapping

from service import reconcile
from service.reconcile import Wanted
from service.records import JobRecord
from service.settings import Settings
from service.store import Store
from worker.cluster import Cluster

WARM_WORKERS = 4
LOOK_AHEAD = 50  # queued jobs that are looked through for one that fits


class Queue:
    """The jobs that wait in the store, beside the room that the cluster has for them."""

    def __init__(self, store: Store, cluster: Cluster, settings: Settings, clock: Callable[[], float]) -> None:
        self._store, self._cluster, self._settings, self._clock = store, cluster, settings, clock
        self._unfit_since: dict[str, float] = {}  # jobs that did not fit when it was their turn

    def slots(self) -> reconcile.Slots:
        """What the cluster has, and what of it is free."""
        capacity = self._cluster.capacity()
        return reconcile.Slots(capacity.worker_slots, capacity.free_worker_slots, capacity.cpus)

    def next(self, running: int, starting: int, shortage: str | None) -> str | None:
        """The job to start now, if there is room for one. Those that do not fit are told why.

        `running`: so many jobs have a trainer or are about to, `starting` of them have none yet; `shortage`: of room on
        the disks, which nothing is started in.
        """
        slots, now = self.slots(), self._clock()
        self._cluster.warm(1, min(WARM_WORKERS, slots.cpus, slots.free))
        if not reconcile.may_claim(running, self._settings.max_running_jobs, starting):
            return None
        queue = {job.id: job for job in self._store.queued_jobs(LOOK_AHEAD)}
        choice = reconcile.choose([self._candidate(job, now) for job in queue.values()], slots, shortage)
        if shortage is None:
            self._unfit_since = {id: self._unfit_since.get(id, now) for id in choice.reasons}
        for job_id, reason in choice.reasons.items():
            if queue[job_id].status_reason != reason:
                self._store.explain_wait(job_id, reason)
        return choice.start

    def demand(self, workers: Mapping[str, int], jobs: Mapping[str, JobRecord], shortage: str | None) -> None:
        """Have the cluster's autoscaler see for how many workers there is work: for the jobs that train or are
        about to, by how many workers each has, and for those that may begin beside them: none in a `shortage`."""
        may_begin = self._settings.max_running_jobs - len(workers) if shortage is None else 0
        waiting = self._store.queued_jobs(may_begin) if may_begin > 0 else []
        teams = [(jobs[id], has) for id, has in workers.items()] + [(job, 0) for job in waiting]
        wanted = [reconcile.demand(workers_wanted(job), job.spec["distribution"]["shards"], has) for job, has in teams]
        self._cluster.demand(min(sum(wanted), self._settings.worker_slots))

    def _candidate(self, job: JobRecord, now: float) -> reconcile.Waiting:
        unfit = now - self._unfit_since.get(job.id, now)
        return reconcile.Waiting(job.id, workers_wanted(job), job.spec["distribution"]["shards"], unfit)


def workers_wanted(job: JobRecord) -> Wanted:
    """How many workers the job is to have: what was asked for last, or what its spec has."""
    wanted: Wanted = job.workers_requested or job.spec["distribution"]["workers"]
    return wanted
