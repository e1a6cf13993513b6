"""Written beside training: in order, the newest one of those that wait, and no error is lost."""

import threading
from pathlib import Path

import numpy as np
import pytest

from worker.checkpoint import Checkpoint, CheckpointDescription
from worker.checkpoint_store import CheckpointStore
from worker.checkpoint_writer import CheckpointWriter
from worker.errors import CheckpointStorageError

PLAN = "5" * 64
WAIT_S = 60.0  # only ever reached by a failure


def sample(step: int) -> Checkpoint:
    values = np.full((3, 40), step, np.float32)
    return Checkpoint("job_1", 1, PLAN, "numerics", step, 0, values[0], values[1:])


class SlowStore(CheckpointStore):
    """Saves once it is let; `started` is released as each save begins."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.started, self.let = threading.Semaphore(0), threading.Semaphore(0)

    def save(self, checkpoint: Checkpoint) -> CheckpointDescription:
        self.started.release()
        assert self.let.acquire(timeout=WAIT_S)
        return super().save(checkpoint)


@pytest.fixture
def store(tmp_path: Path) -> SlowStore:
    return SlowStore(tmp_path / "job_1")


def steps(store: CheckpointStore) -> list[int]:
    return [told.step for told in store.list()]


def test_training_goes_on_while_it_writes_and_only_the_newest_waits(store: SlowStore) -> None:
    saved: list[CheckpointDescription] = []
    with CheckpointWriter(store, saved.append) as writer:
        writer.write(sample(1))
        assert store.started.acquire(timeout=WAIT_S)
        for step in (2, 3, 4):
            writer.write(sample(step))  # returns, though the first is not written
        assert steps(store) == []
        store.let.release(2)
        writer.flush()
        assert steps(store) == [4, 1]
        assert [told.step for told in saved] == [1, 4]
    assert tuple(reversed(saved)) == store.list()


def test_flush_and_close_wait_until_it_is_on_the_disk(store: SlowStore) -> None:
    writer = CheckpointWriter(store)
    writer.flush()
    writer.write(sample(1))
    assert store.started.acquire(timeout=WAIT_S)
    threading.Timer(0.05, store.let.release).start()
    writer.flush()
    assert steps(store) == [1]
    writer.write(sample(2))
    threading.Timer(0.05, store.let.release).start()
    writer.close()
    assert steps(store) == [2, 1]
    with pytest.raises(ValueError, match="step 3: the checkpoint writer is closed"):
        writer.write(sample(3))
    writer.close()


def test_no_thread_stays_when_there_is_nothing_to_write(store: SlowStore) -> None:
    before = threading.active_count()
    store.let.release(2)
    writer = CheckpointWriter(store)
    for step in (1, 2):
        writer.write(sample(step))
        writer.flush()
        writers = [thread for thread in threading.enumerate() if thread.name == "CheckpointWriter"]
        for thread in writers:
            thread.join(WAIT_S)
        assert threading.active_count() == before
    assert steps(store) == [2, 1]


def test_an_error_is_raised_by_the_next_call_which_does_its_work(store: SlowStore) -> None:
    store.let.release(9)
    writer = CheckpointWriter(store)
    store.folder.write_text("in the way")
    writer.write(sample(1))
    with pytest.raises(CheckpointStorageError, match="job_1"):
        writer.flush()
    writer.flush()  # told of once
    store.folder.unlink()
    writer.write(sample(3))
    writer.close()
    assert steps(store) == [3]


def test_a_write_that_tells_of_an_error_is_done_all_the_same(store: SlowStore) -> None:
    saved: list[int] = []
    told = threading.Event()

    def fails_first(description: CheckpointDescription) -> None:
        saved.append(description.step)
        if description.step == 1:
            told.set()
            raise OSError("nobody listens")

    writer = CheckpointWriter(store, fails_first)
    writer.write(sample(1))
    store.let.release()
    assert told.wait(WAIT_S)
    for thread in threading.enumerate():
        if thread.name == "CheckpointWriter":
            thread.join(WAIT_S)
    with pytest.raises(OSError, match="nobody listens"):
        writer.write(sample(2))
    store.let.release()
    writer.close()
    assert saved == [1, 2]
    assert steps(store) == [2, 1]


def test_errors_that_nobody_was_told_of_are_notes_on_the_first(store: SlowStore) -> None:
    store.folder.write_text("in the way")
    writer = CheckpointWriter(store)
    writer.write(sample(1))
    assert store.started.acquire(timeout=WAIT_S)
    writer.write(sample(2))
    store.let.release(2)
    with pytest.raises(CheckpointStorageError) as caught:
        writer.close()
    assert [note.startswith("and then: checkpoints: ") for note in caught.value.__notes__] == [True]
