"""What the cluster's autoscaler is told, over a store and a cluster that only take notes."""

from dataclasses import replace
from typing import Any

from service.queue import Queue
from service.records import JobRecord
from service.settings import Settings

SETTINGS = Settings.from_environment({"FALLLINE_WORKER_SLOTS": "12", "FALLLINE_MAX_RUNNING_JOBS": "3"})
EMPTY: dict[str, Any] = dict.fromkeys(JobRecord.__dataclass_fields__)


class Notes:
    """Jobs that wait, and what has been demanded."""

    def __init__(self, *waiting: JobRecord) -> None:
        self.waiting, self.demanded = list(waiting), list[int]()

    def queued_jobs(self, limit: int) -> list[JobRecord]:
        return self.waiting[:limit]

    def demand(self, workers: int) -> None:
        self.demanded.append(workers)


def job(name: str, workers: Any) -> JobRecord:
    return JobRecord(**EMPTY | {"id": name, "spec": {"distribution": {"workers": workers, "shards": 8}}})


def demanded(notes: Notes, running: dict[str, int], *jobs: JobRecord, shortage: str | None = None) -> int:
    queue = Queue(notes, notes, SETTINGS, lambda: 0.0)  # type: ignore[arg-type]
    queue.demand(running, {job.id: job for job in jobs}, shortage)
    return notes.demanded[-1]


def test_room_is_demanded_for_all_that_trains_and_for_what_may_begin_beside_it() -> None:
    waiting = job("w1", 2), job("w2", "auto"), job("w3", 1)
    ranged, auto = job("a", {"min": 1, "max": 4}), job("b", "auto")
    assert demanded(Notes(*waiting), {}) == 2 + 1 + 1
    assert demanded(Notes(*waiting), {"a": 1, "b": 3}, ranged, auto) == 4 + 3 + 2
    assert demanded(Notes(*waiting), {"a": 0, "b": 0, "c": 1}, ranged, auto, job("c", 1)) == 4 + 1 + 1
    assert demanded(Notes(job("w", 8)), {"a": 1, "b": 3}, ranged, auto) == 12  # there are never more slots
    assert demanded(Notes(), {"a": 2}, replace(ranged, workers_requested=2)) == 2  # asked for since
    assert demanded(Notes(), {}) == 0


def test_no_room_is_demanded_for_what_a_full_disk_keeps_from_beginning() -> None:
    waiting, full = Notes(job("w1", 2), job("w2", "auto")), "the disk is nearly full"
    assert demanded(waiting, {}, shortage=full) == 0
    assert demanded(waiting, {"a": 1}, job("a", 3), shortage=full) == 3  # it trains until it is paused
