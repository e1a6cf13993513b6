"""Events: numbered without gaps, whoever writes them at once; a watcher's counter that never stands still."""

from concurrent.futures import ThreadPoolExecutor

from service.records import NewEvent
from service.store import Store

from .conftest import Fill

THREADS, EACH = 8, 5


def test_events_of_eight_writers_at_once_are_numbered_without_gaps(store: Store, fill: Fill) -> None:
    job = fill.job()
    held = store.claim_job("one", 60.0)
    assert held is not None

    def write(writer: int) -> None:
        for number in range(EACH):
            new = [NewEvent("log", "info", f"{writer} {number} {part}", {}) for part in "ab"]
            store.set_progress(job.id, 1, {"step": number}, [(f"series {writer}", number, 1.0, 1.0)], new)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(write, range(THREADS)))
    found = store.events_after(job.id, 0, 1000)
    assert [event.id for event in found] == list(range(1, 3 + 2 * THREADS * EACH))
    for writer in range(THREADS):  # each writer's events in its own order, those of one call together
        own = [event.message for event in found if event.message.startswith(f"{writer} ")]
        assert own == [f"{writer} {number} {part}" for number in range(EACH) for part in "ab"]
    assert [point.seq for point in store.unpublished_points(job.id)] == list(range(1, THREADS * EACH + 1))


def test_a_reader_goes_on_behind_the_last_one_it_has_seen(store: Store, fill: Fill) -> None:
    job = fill.job()
    store.request_cancel(job.id)
    found = store.events_after(job.id, 0, 1)
    assert [event.message for event in found] == ["queued"]
    assert [event.message for event in store.events_after(job.id, found[-1].id, 9)] == ["cancelled before it started"]
    assert store.events_after(job.id, 2, 9) == []


def test_the_counter_rises_with_every_write_of_events_and_only_then(store: Store, fill: Fill) -> None:
    seen = [store.last_event_number()]
    fill.dataset()
    assert store.last_event_number() == seen[-1]
    job = fill.job()
    seen.append(store.last_event_number())
    store.request_cancel(job.id)
    seen.append(store.last_event_number())
    assert sorted(set(seen)) == seen
