"""The jobs under this controller's lease: each is looked at once a turn, and what `job_state.step` says is carried out.

Nothing is kept here that the store or the cluster does not know, but for how far each trainer has been heard. A trainer
is known by its job and its attempt, which is the lease's epoch at its start: a controller that takes a job over goes on
with its newest trainer, under an epoch of its own. A job that has lost its trainer gives its lease back, and whoever
claims it next starts it again, from its newest checkpoint. The weights come out the same, and of each metric point the
first write stays.
"""

import logging
import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from service import reconcile, reports
from service.artifacts import ArtifactStore
from service.disk import DiskWatch
from service.errors import LeadLost, LeaseLost, StoreUnavailable
from service.held_job import HeldJob
from service.job_events import Do, Effect, End, Event, TrainerEnded, TrainerLost, TrainerMissing, TrainerRuns
from service.job_state import FAILED, state_of, step
from service.lead import RENEWALS, Lead
from service.planning import training_plan
from service.queue import Queue, workers_wanted
from service.records import JobRecord, Json, NewEvent
from service.settings import Settings
from service.store import Store
from worker import errors
from worker.cluster import Cluster, TrainerHandle
from worker.errors import ClusterLost

log = logging.getLogger(__name__)
CLAIM_SECONDS = 1.0
DEMAND_SECONDS = 5.0
SAVE_SECONDS = 3.0  # of the supervisor's patience with this process


class JobKeeper:
    """One controller's jobs. Raises `ClusterLost` when Ray is gone, `LeadLost` when another controller has taken over:
    the process should end then."""

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        artifacts: ArtifactStore,
        settings: Settings,
        lead: Lead,
        disks: DiskWatch,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.store, self.cluster, self.artifacts, self.settings, self.lead = store, cluster, artifacts, settings, lead
        self.disks, self._clock, self._wall_clock = disks, clock, wall_clock
        self.held: dict[str, HeldJob] = {}
        self.waiting: set[str] = set()  # ours, without a trainer: to be started as soon as there are slots
        self.losses: Counter[str] = Counter()
        self._start_at: dict[str, float] = {}  # jobs that have lost trainers: not before
        self._queue = Queue(store, cluster, settings, clock)
        self._shortage: str | None = None  # of room on the disks, as this turn has seen it
        self._told_of_room = False  # the jobs that wait for it
        self._renewed_at = clock()
        self._broke_off = False
        self._claimed_at, self._claimed_number = -CLAIM_SECONDS, -1
        self._demanded_at = -DEMAND_SECONDS

    def adopt(self) -> None:
        """Takes over what the last controller has left: call it once, before the first turn."""
        trainers: dict[str, TrainerHandle] = {}
        for handle in sorted(self.cluster.running(), key=lambda handle: handle.attempt):
            if (older := trainers.pop(handle.job_id, None)) is not None:
                self.cluster.kill(older)
            trainers[handle.job_id] = handle
        for job in self._claim_expired():
            if job.result is None and job.id in trainers:
                held = HeldJob(self.store, trainers.pop(job.id), self._clock)
                log.info("%s goes on, heard up to update %d", job.id, held.catch_up())
                self.held[job.id] = held
            elif job.result is None and job.progress is not None:
                self._guarded(job, lambda job: self._lost(job, "the trainer was lost while no controller ran"))
        for handle in trainers.values():
            self.cluster.kill(handle)
        self.waiting -= self.held.keys()

    def turn(self) -> None:
        """One look at every job, then claims while there is room.

        A store that is full, locked for long or away takes nothing: what is to be written waits, and so does whatever
        would follow from it; the next turn goes on where this one broke off. Trainers are asked all the same, for one
        that nobody asks ends; what they say, they say again.
        """
        try:
            self._turn()
        except StoreUnavailable as error:
            log.warning("%s; trainers go on meanwhile", error)
            for held in list(self.held.values()):
                with suppress(errors.TrainerLost):  # the next turn that may write finds it, and says so
                    held.poll()

    def _turn(self) -> None:
        if self._broke_off:  # the store may have written what it gave no answer to
            for held in self.held.values():
                held.catch_up()
        self._broke_off = True
        self.lead.hold()
        self._look_at_disk()
        jobs = {job.id: job for job in self.store.leased_jobs(self.lead.owner)}
        self._renew(jobs)
        for job_id in self.held.keys() - jobs.keys():
            self._drop(job_id)  # somebody else's by now, or ended by somebody else
        self.waiting &= jobs.keys()
        for job in jobs.values():
            if job.id in self.held or job.id in self.waiting:
                self._guarded(job, self._look)
        self._demand(jobs)
        self._claim()
        self._broke_off = False

    def _look_at_disk(self) -> None:
        """Jobs that wait for room go on as soon as there is some; that it lacks is for `_look` and `_next` to say."""
        self._shortage = self.disks.shortage()
        if self._shortage is None and not self._told_of_room:
            self.store.room_again()
        self._told_of_room = self._shortage is None

    def save(self) -> None:
        """Has every job write a checkpoint, at the end of this process: Ray may be about to end, too."""
        self.cluster.save([held.handle for held in self.held.values()], SAVE_SECONDS)
        self.cluster.demand(0)  # nodes with workers stay; whoever leads next says what else is wanted

    # One job. Each method writes under the job's epoch; LeaseLost from any of them drops the job.

    def _guarded(self, job: JobRecord, act: Callable[[JobRecord], None]) -> None:
        """Something about one job. What nobody foresaw fails that job alone, with an id that the log carries."""
        try:
            self.lead.hold()
            act(job)
        except LeaseLost as error:
            log.warning("%s", error)
            self._drop(job.id)
        except errors.TrainerLost as error:
            why = str(error)
            self._guarded(job, lambda job: self._lost(job, why))
        except (ClusterLost, LeadLost, StoreUnavailable, SQLAlchemyError):
            raise
        except Exception as error:
            number = uuid.uuid4().hex[:12]
            log.error("failure %s of %s", number, job.id, exc_info=error)
            message = f"an unexpected error; the controller's log tells more under {number}"
            failed = {"code": "internal", "message": message, "id": number}
            self._guarded(job, lambda job: self._happened(job, self._end(job, failed)))

    def _happened(self, job: JobRecord, event: Event) -> None:
        """Decides what `event` means for the job, writes it where that changes the job, and carries it out."""
        before = state_of(job)
        after, effects = step(before, event)
        if after != before:
            _, effects = self.store.apply(job.id, event)  # decided again there, on what the store holds by now
        self._carry_out(job, effects)

    def _carry_out(self, job: JobRecord, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if effect is Do.START:
                self._start(job)
            elif effect is Do.CANCEL:
                self.held[job.id].handle.cancel()
            elif effect is Do.PAUSE:
                self.held[job.id].handle.pause()
            elif effect is Do.SCALE:
                self.held[job.id].scale(job)
            elif effect is Do.RELEASE:
                self._release(job.id)
            elif effect is Do.KILL:
                self._drop(job.id)

    def _look(self, job: JobRecord) -> None:
        held = self.held.get(job.id)
        if held is None:
            self._happened(job, TrainerMissing(self._wall_clock(), job.lease_epoch, self._shortage))
        elif held.comes_due():
            self._happened(job, TrainerRuns(self._wall_clock(), job.lease_epoch, self._shortage))
            if job.id in self.held:  # else it is trained, and its trainer has just been released
                self._ask(job, held)

    def _start(self, job: JobRecord) -> None:
        if self._clock() < self._start_at.get(job.id, -math.inf):
            return
        epoch, slots = job.lease_epoch, self._queue.slots()
        wanted, shards = workers_wanted(job), job.spec["distribution"]["shards"]
        workers = reconcile.workers_for(wanted, shards, slots)
        if workers is None:
            self.store.set_status_reason(job.id, epoch, reconcile.reason_to_wait(wanted, shards, slots))
            return
        plan = training_plan(job, self.store.get_dataset(job.dataset_id), self.settings)
        most = workers if wanted == "auto" else reconcile.bounds(wanted, shards)[1]
        idle_cores = isinstance(wanted, Mapping)
        handle = self.cluster.start(plan, epoch, workers, most, idle_cores)
        self.held[job.id] = HeldJob(self.store, handle, self._clock)
        self.waiting.discard(job.id)
        message = f"training starts; workers: {workers}, data shards: {shards}"
        event = NewEvent("log", "info", message, {"workers": workers, "shards": shards})
        progress = reports.starting(workers, plan.epochs, job.plan["steps"])
        self.store.set_progress(job.id, epoch, progress, events=[event])
        if job.status_reason is not None:
            self.store.set_status_reason(job.id, epoch, None)

    def _ask(self, job: JobRecord, held: HeldJob) -> None:
        report = held.ask(job)
        if report is None or report.outcome is None:
            return
        if report.result is not None and not job.cancel_requested:
            self._carry_out(job, held.keep(job, report.result, self.artifacts))
        else:
            error = None if report.failure is None else reports.error_of(report.failure)
            self._happened(job, TrainerEnded(self._wall_clock(), job.lease_epoch, report.outcome, error))

    def _end(self, job: JobRecord, error: Json) -> End:
        self.waiting.discard(job.id)
        return End(self._wall_clock(), job.lease_epoch, FAILED, error)

    def _lost(self, job: JobRecord, why: str) -> None:
        self.losses[job.id] += job.id in self.held  # one that never came up says nothing about the job
        losses, error = self.losses[job.id], None
        if not reconcile.after_lost_trainer(losses):
            message = f"the trainer was lost {losses} times"
            error = {"code": "worker_failures", "message": message, "failures": losses}
        self._start_at[job.id] = self._clock() + reconcile.pause_after_lost_trainer(losses)
        self.waiting.discard(job.id)
        reason = f"{why}; the job is started again"
        self._happened(job, TrainerLost(self._wall_clock(), job.lease_epoch, reason, error))
        self.cluster.running()  # a trainer lost at its very start is nobody's: this look gives its crew's slots back

    # All jobs.

    def _renew(self, jobs: dict[str, JobRecord]) -> None:
        """Not the leases of jobs that were given back: those are to be claimed again."""
        now = self._clock()
        if now - self._renewed_at > self.lead.seconds / RENEWALS:
            ours = [id for id, job in jobs.items() if job.result or id in self.held or id in self.waiting]
            self.store.renew_leases(self.lead.owner, ours, self.lead.seconds)
            self._renewed_at = now

    def _claim(self) -> None:
        """Claims when something has happened to any job since the last time, and once a second: leases run out."""
        number, now = self.store.last_event_number(), self._clock()
        if number == self._claimed_number and now - self._claimed_at < CLAIM_SECONDS:
            return
        self._claimed_number, self._claimed_at = number, now
        for job in self._claim_expired():
            if job.id in self.waiting:
                self._guarded(job, self._look)
        while (job_id := self._queue.next(self._running(), len(self.waiting), self._shortage)) is not None:
            claimed = self.store.claim_job(self.lead.owner, self.lead.seconds, job_id)
            if claimed is not None:
                self.waiting.add(claimed.id)
                self._guarded(claimed, self._look)

    def _demand(self, jobs: dict[str, JobRecord]) -> None:
        """What the cluster is to have room for, seldom enough that a job more or less does not call for it twice."""
        now = self._clock()
        if now - self._demanded_at >= DEMAND_SECONDS:
            self._demanded_at = now
            running = {id: held.handle.workers for id, held in self.held.items() if id in jobs}
            self._queue.demand(running | dict.fromkeys(self.waiting & jobs.keys(), 0), jobs, self._shortage)

    def _claim_expired(self) -> list[JobRecord]:
        """Jobs that have lost their controller, or their trainer. One that is being registered is the publisher's."""
        found = []
        for expired in self.store.expired_jobs():
            job = self.store.claim_job(self.lead.owner, self.lead.seconds, expired.id)
            if job is not None:
                found.append(job)
                if job.result is None and job.id not in self.held:
                    self.waiting.add(job.id)
        return found

    def _running(self) -> int:
        return len(self.held.keys() | self.waiting)

    def _drop(self, job_id: str) -> None:
        """Ends the trainer of a job that is not ours any more, or does not answer."""
        self.waiting.discard(job_id)
        held = self.held.pop(job_id, None)
        if held is not None:
            self.cluster.kill(held.handle)

    def _release(self, job_id: str) -> None:
        """Takes the actors of an ended job back into the pool, or ends them where that fails."""
        held = self.held.pop(job_id, None)
        if held is None:
            return
        try:
            self.cluster.release(held.handle)
        except ClusterLost:
            raise
        except Exception as error:  # the job's end is written: what fails now must not touch it
            log.error("the actors of %s do not come back to the pool", job_id, exc_info=error)
            self.cluster.kill(held.handle)
