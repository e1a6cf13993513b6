"""The store in the simulated world, what must hold of every change, and how a controller's process sees it."""

from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from service import job_state
from service.errors import InvalidTransition, LeadLost, StoreFull, StoreUnavailable
from service.job_events import Cancel, Claim, End, Event, Pause, Renew, Resume, RoomAgain, TakeOver, Tell, TrainerEnded
from service.job_state import ALLOWED, CANCELLED, FAILED, FINAL, PAUSED, QUEUED, RUNNING, SUCCEEDED
from service.records import EventRecord, JobRecord, Json, LeadRecord, NewEvent, VersionRecord

from .simulated_cluster import BROKEN, SimulatedTrainer, Violation

if TYPE_CHECKING:
    from .simulated_world import SimulatedController, World


READS = {"leader", "leased_jobs", "expired_jobs", "queued_jobs"}
READS |= {"events_after", "last_event_number", "get_dataset", "get_model"}


class SimulatedStore:
    """The jobs, and what must hold of every change. Atomic, as a transaction is."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.jobs: dict[str, JobRecord] = {}
        self.events: dict[str, list[EventRecord]] = {}
        self.points: dict[str, dict[int, float]] = {}
        self.versions: dict[str, VersionRecord] = {}
        self.lead: LeadRecord | None = None
        self.owners: dict[tuple[str, int], str] = {}  # who got each lease
        self.results: dict[str, int] = {}  # how often each job got one
        self.paused_by_users: set[str] = set()
        self.is_full = False

    def submit(self, random: Random) -> None:
        number = len(self.jobs) + 1
        workers = random.choice(("auto", 1, 2, 4, {"min": 1, "max": 3}))
        spec = {
            "distribution": {"workers": workers, "shards": 4},
            "model": {"deploy": "never"},
            "split": {},
            "training": {},
        }
        empty: dict[str, Any] = dict.fromkeys(JobRecord.__dataclass_fields__)
        flags = dict.fromkeys(("cancel_requested", "pause_requested", "registering", "run_ended"), False)
        counts = dict.fromkeys(("lease_epoch", "event_count", "point_count", "published_seq"), 0)
        about = {"number": number, "id": f"job_{number}", "status": QUEUED, "dataset_id": "ds", "model_name": "m"}
        name, priority = random.choice(("good", "good", "good", BROKEN)), random.choice((0, 0, 5))
        dicts: dict[str, Any] = {"metadata": {}, "metrics": {}, "plan": {"steps": SimulatedTrainer.STEPS}}
        values = empty | flags | counts | about | dicts | {"name": name, "priority": priority, "spec": spec}
        self.jobs[f"job_{number}"] = JobRecord(**values)
        self.events[f"job_{number}"], self.points[f"job_{number}"] = [], {}

    def change(self, job_id: str, event: Event, values: Json | None = None, writer: str | None = None) -> Any:
        """As `store_jobs.change`, and checked. `writer`: the controller's process that brings the event."""
        job = self.jobs[job_id]
        before = job_state.state_of(job)
        after, effects = job_state.step(before, event)
        if after == before:
            return job, effects
        self.check(before, after, event, writer)
        self.note_wishes(job_id, event)
        changed = {name: getattr(after, name) for name in vars(after) if name != "trained"}
        becomes_trained = after.trained and not before.trained
        self.results[job_id] = self.results.get(job_id, 0) + becomes_trained
        has_reason = (after.status, after.waits_for_disk) != (before.status, before.waits_for_disk)
        further = {"status_reason": after.waits_for_disk} if has_reason else {}
        self.jobs[job_id] = replace(job, **changed, **further, **(values or {} if becomes_trained else {}))
        self.tell(job_id, [effect.event for effect in effects if isinstance(effect, Tell)])
        return self.jobs[job_id], effects

    def check(self, before: Any, after: Any, event: Event, writer: str | None) -> None:
        if before.status in FINAL:
            raise Violation(f"{before.id} was {before.status}, and is changed by {event}")
        if before.status != after.status and (before.status, after.status) not in ALLOWED:
            raise Violation(f"{before.id} goes from {before.status} to {after.status} by {event}")
        if isinstance(event, Claim):
            if self.owners.setdefault((before.id, after.lease_epoch), event.owner) != event.owner:
                raise Violation(f"{before.id} has two owners under epoch {after.lease_epoch}")
            if self.lead is not None and event.owner != self.lead.owner:
                raise Violation(f"{event.owner} claims {before.id}, and does not lead")
        elif not isinstance(event, Cancel | Pause | Resume | RoomAgain | TakeOver | Renew):
            self.check_writer(before.id, writer)
        if isinstance(event, RoomAgain) and before.id in self.paused_by_users:
            raise Violation(f"{before.id} was paused by its user, and goes on since the disk has room")
        if after.status == PAUSED and after.waits_for_disk is None and before.id not in self.paused_by_users:
            if not isinstance(event, Pause):
                raise Violation(f"{before.id} is paused by {event}, and nobody wanted it")
        if after.waits_for_disk is not None and (after.status not in (RUNNING, PAUSED) or after.trained):
            raise Violation(f"{before.id} waits for the disk: {after}")
        if after.status == CANCELLED and not after.cancel_requested:
            raise Violation(f"{before.id} is cancelled, and nobody wanted it")

    def note_wishes(self, job_id: str, event: Event) -> None:
        """Of users: the last of Pause and Resume that has changed something counts."""
        if isinstance(event, Pause):
            self.paused_by_users.add(job_id)
        elif isinstance(event, Resume):
            self.paused_by_users.discard(job_id)

    def check_writer(self, job_id: str, writer: str | None) -> None:
        job = self.jobs[job_id]
        if job.status != RUNNING or self.owners[job_id, job.lease_epoch] != writer:
            raise Violation(f"{writer} writes about {job_id}, which is {self.owners.get((job_id, job.lease_epoch))}'s")

    def check_end(self, job: JobRecord) -> None:
        """What must hold of a job that has ended."""
        is_success = job.status == SUCCEEDED
        if is_success != (job.id in self.versions) or is_success != (job.id in self.world.versions):
            raise Violation(f"{job.id} is {job.status}: version {self.versions.get(job.id)}")
        if is_success:
            if self.results[job.id] != 1 or (job.result or {})["weights_sha256"] != f"weights of {job.id} at 5":
                raise Violation(f"{job.id} has {self.results[job.id]} results, the last one {job.result}")
            if sorted(self.points[job.id]) != [1, 2, 3, 4, 5]:
                raise Violation(f"{job.id} has a gap among its points: {self.points[job.id]}")
        if job.status == FAILED and job.name != BROKEN and (job.error or {})["code"] != "worker_failures":
            raise Violation(f"{job.id} has failed: {job.error}")
        statuses = [event.data["status"] for event in self.events[job.id] if event.type == "status"]
        if statuses[-1] != job.status or sum(status in FINAL for status in statuses) != 1:
            raise Violation(f"{job.id} tells of {statuses}")
        told = [(e.data["attempt"], e.data["update"]) for e in self.events[job.id] if "update" in e.data]
        if len(told) != len(set(told)):
            raise Violation(f"{job.id} tells something twice: {told}")

    def tell(self, job_id: str, new: list[NewEvent]) -> None:
        events = self.events[job_id]
        for event in new:
            number = len(events) + 1
            events.append(
                EventRecord(job_id, number, event.type, self.world.now, event.level, event.message, event.data)
            )

    def in_turn(self, jobs: list[JobRecord]) -> list[JobRecord]:
        return sorted(jobs, key=lambda job: (-job.priority, job.number))


class StoreView:
    """The store as one controller's process calls it: each call may be the last."""

    def __init__(self, world: "World", controller: "SimulatedController") -> None:
        self._world, self._controller, self._process = world, controller, controller.process
        self._store = world.store

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith("_"):
            return found

        def called(*arguments: Any, **options: Any) -> Any:
            with self._world.call(self._controller):
                if name not in READS and self._store.is_full:
                    raise StoreFull("fallline.db")
                self._may_be_away()
                answer = found(*arguments, **options)
                self._may_be_away()
            return answer

        return called

    def _may_be_away(self) -> None:
        if self._world.trouble_with(0.003):
            raise StoreUnavailable("locked, or its answer is lost")

    def _now(self) -> float:
        return self._world.now + self._controller.skew

    def leader(self) -> LeadRecord | None:
        return self._store.lead

    def take_lead(self, owner: str, seconds: float, over: LeadRecord | None) -> LeadRecord | None:
        found = self._store.lead
        if (found and (found.owner, found.epoch)) != (over and (over.owner, over.epoch)):
            return None
        self._store.lead = LeadRecord(owner, 1 if over is None else over.epoch + 1, self._now() + seconds)
        for job in self._store.jobs.values():
            if job.status == RUNNING:
                self._store.change(job.id, TakeOver(self._now()), writer=self._process)
        return self._store.lead

    def renew_lead(self, lead: LeadRecord, seconds: float) -> None:
        found = self._store.lead
        if found is None or (found.owner, found.epoch) != (lead.owner, lead.epoch):
            raise LeadLost(lead.owner)
        self._store.lead = replace(found, expires_at=self._now() + seconds)

    def leased_jobs(self, owner: str) -> list[JobRecord]:
        return [job for job in self._store.jobs.values() if job.lease_owner == owner and job.status == RUNNING]

    def expired_jobs(self) -> list[JobRecord]:
        now = self._now()
        running = [job for job in self._store.jobs.values() if job.status == RUNNING]
        return self._store.in_turn([j for j in running if j.lease_expires_at is None or j.lease_expires_at <= now])

    def queued_jobs(self, limit: int) -> list[JobRecord]:
        return self._store.in_turn([job for job in self._store.jobs.values() if job.status == QUEUED])[:limit]

    def claim_job(self, owner: str, seconds: float, job_id: str) -> JobRecord | None:
        if self._store.lead is not None and self._store.lead.owner != owner:
            raise LeadLost(owner)
        try:
            job: JobRecord = self._store.change(job_id, Claim(self._now(), owner, seconds))[0]
        except InvalidTransition:
            return None
        return job

    def room_again(self) -> None:
        if self._store.lead is not None and self._store.lead.owner != self._process:
            raise LeadLost(self._process)
        for job in list(self._store.jobs.values()):
            if job.status == PAUSED and job.waits_for_disk is not None:
                self._store.change(job.id, RoomAgain(self._now()), writer=self._process)

    def renew_leases(self, owner: str, job_ids: list[str], seconds: float) -> None:
        for job_id in job_ids:
            self._store.change(job_id, Renew(self._now(), owner, seconds), writer=self._process)

    def apply(self, job_id: str, event: Event, values: Json | None = None) -> Any:
        return self._store.change(job_id, event, values, writer=self._process)

    def set_result(self, job_id: str, epoch: int, result: Json, artifact: str, metadata: Json) -> Any:
        values = {"result": result, "artifact_sha256": artifact, "model_metadata": metadata}
        return self._store.change(job_id, TrainerEnded(self._now(), epoch, SUCCEEDED), values, writer=self._process)

    def finish_job(self, job_id: str, epoch: int, status: str, error: Json | None = None) -> JobRecord:
        event = End(self._now(), epoch, status, error)
        found: JobRecord = self._store.change(job_id, event, writer=self._process)[0]
        return found

    def set_progress(
        self, job_id: str, epoch: int, progress: Json, points: Any = (), events: Any = (), metrics: Any = None
    ) -> None:
        job = job_state._held(job_state.state_of(self._store.jobs[job_id]), epoch)
        self._store.check_writer(job.id, self._process)
        self._store.jobs[job_id] = replace(self._store.jobs[job_id], progress=progress)
        for _, step, value, _ in points:
            self._store.points[job_id].setdefault(step, value)
        self._store.tell(job_id, events)

    def set_status_reason(self, job_id: str, epoch: int, reason: str | None) -> None:
        job_state._held(job_state.state_of(self._store.jobs[job_id]), epoch)
        self._store.check_writer(job_id, self._process)
        self._store.jobs[job_id] = replace(self._store.jobs[job_id], status_reason=reason)

    def explain_wait(self, job_id: str, reason: str | None) -> None:
        if self._store.jobs[job_id].status == QUEUED:
            self._store.jobs[job_id] = replace(self._store.jobs[job_id], status_reason=reason)

    def events_after(self, job_id: str, after: int, limit: int) -> list[EventRecord]:
        return list(self._store.events[job_id])[after : after + limit]

    def last_event_number(self) -> int:
        return sum(len(events) for events in self._store.events.values())

    def get_dataset(self, dataset_id: str) -> Any:
        return SimpleNamespace(id=dataset_id)

    def record_version(self, job_id: str, number: int) -> VersionRecord:
        empty: dict[str, Any] = dict.fromkeys(VersionRecord.__dataclass_fields__)
        about = {"job_id": job_id, "version": number, "name": "m", "signature": {"outputs": []}, "metrics": {}}
        return self._store.versions.setdefault(job_id, VersionRecord(**(empty | about)))

    def get_model(self, name: str) -> Any:
        return SimpleNamespace(production_version=None)

    def mark_run_ended(self, job_id: str) -> None:
        self._store.jobs[job_id] = replace(self._store.jobs[job_id], run_ended=True)
