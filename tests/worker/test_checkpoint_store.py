"""The store: what it keeps, what it sets aside, what a crash leaves, and a disk that refuses."""

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.checkpoint import ARRAYS, MANIFEST, Checkpoint, write_checkpoint
from worker.checkpoint_store import BROKEN_KEPT, NEWEST_KEPT, BrokenCheckpoint, CheckpointStore, retained
from worker.errors import CheckpointDamaged, CheckpointRefused, CheckpointStorageError

PLAN = "5" * 64


def sample(step: int, size: int = 50, **changes: Any) -> Checkpoint:
    values = np.random.default_rng(step).normal(size=(4, size)).astype(np.float32)
    return Checkpoint("job_1", 1, PLAN, "numerics", step, 0, values[0], values[1:3], **changes)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "jobs" / "job_1")


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def newest(store: CheckpointStore) -> tuple[int | None, list[BrokenCheckpoint]]:
    """The step of the newest valid one, its content checked, and those set aside."""
    broken: list[BrokenCheckpoint] = []
    found = store.newest_valid(PLAN, broken.append)
    if found is not None:
        assert found.parameters.tobytes() == sample(found.step).parameters.tobytes()
        assert found.optimizer_state.tobytes() == sample(found.step).optimizer_state.tobytes()
    return None if found is None else found.step, broken


steps = st.lists(st.one_of(st.integers(1, 300), st.integers(1, 10**12)), max_size=80)


@given(steps)
def test_the_retained_are_the_newest_and_the_first_at_or_after_each_power_of_two(found: list[int]) -> None:
    kept = retained(found)
    powers = [1 << k for k in range(max(found, default=0).bit_length())]
    firsts = {min(step for step in found if step >= power) for power in powers}
    assert kept == firsts | set(sorted(set(found))[-NEWEST_KEPT:])
    assert len(kept) <= NEWEST_KEPT + max(found, default=0).bit_length()


@given(steps)
def test_what_is_let_go_is_never_missed_later(found: list[int]) -> None:
    """Deciding after each save comes to the same as deciding over all of them at the end."""
    kept: set[int] = set()
    for step in sorted(set(found)):
        kept = retained(kept | {step})
    assert kept == retained(found)


def test_a_store_that_was_never_written_is_empty(store: CheckpointStore) -> None:
    assert newest(store) == (None, [])
    assert store.list() == ()
    store.delete_all()
    assert not store.folder.exists()


def test_it_keeps_what_is_retained_and_tells_of_each(store: CheckpointStore) -> None:
    told = {step: store.save(sample(step)) for step in range(3, 60, 3)}
    assert names(store) == sorted(f"step-{step}" for step in (3, 6, 9, 18, 33, 51, 54, 57))
    assert store.list() == tuple(told[step] for step in (57, 54, 51, 33, 18, 9, 6, 3))
    assert newest(store) == (57, [])


def test_a_step_is_saved_again_in_the_place_of_the_first(store: CheckpointStore) -> None:
    """The same step before and after an epoch's end differs in what is finished."""
    store.save(sample(4))
    store.save(sample(4, stopped="early_stopping"))
    found = store.newest_valid(PLAN)
    assert found is not None
    assert found.stopped == "early_stopping"
    assert names(store) == ["step-4"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "flipped": lambda folder: flip(folder / ARRAYS),
    "truncated": lambda folder: os.truncate(folder / ARRAYS, 99),
    "zeroed": lambda folder: (folder / ARRAYS).write_bytes(bytes((folder / ARRAYS).stat().st_size)),
    "deleted": lambda folder: (folder / ARRAYS).unlink(),
    "all deleted": lambda folder: [path.unlink() for path in folder.iterdir()],
    "manifest flipped": lambda folder: flip(folder / MANIFEST),
    "manifest deleted": lambda folder: (folder / MANIFEST).unlink(),
    "a file in its place": lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
    "another step's": lambda folder: (shutil.rmtree(folder), folder.mkdir(), write_checkpoint(folder, sample(2))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_one_is_set_aside_and_told_of_and_the_one_before_is_used(store: CheckpointStore, damage: str) -> None:
    for step in (1, 2, 3):
        store.save(sample(step))
    DAMAGE[damage](store.folder / "step-3")
    step, (broken,) = newest(store)
    assert (step, broken.step) == (2, 3)
    assert broken.reason
    assert names(store) == [Path(broken.path).name, "step-1", "step-2"]
    assert Path(broken.path).name.startswith("broken-step-3-")
    assert newest(store) == (2, [])  # told of once
    assert [told.step for told in store.list()] == [2, 1]


def test_where_all_are_broken_there_is_none_and_not_all_of_them_are_kept(store: CheckpointStore) -> None:
    for step in range(1, 7):
        store.save(sample(step))
    steps = [told.step for told in store.list()]
    for step in steps:
        flip(store.folder / f"step-{step}" / ARRAYS)
    step, broken = newest(store)
    assert (step, [b.step for b in broken]) == (None, steps)
    assert len(names(store)) == BROKEN_KEPT < len(steps)
    store.save(sample(5))
    assert newest(store) == (5, [])


def test_one_of_another_plan_is_refused_and_stays(store: CheckpointStore) -> None:
    store.save(sample(5))
    with pytest.raises(CheckpointRefused, match="belongs to the plan"):
        store.newest_valid("6" * 64)
    assert newest(store) == (5, [])


def test_a_list_leaves_a_broken_one_out_and_touches_nothing(store: CheckpointStore) -> None:
    for step in (1, 2, 3):
        store.save(sample(step))
    (store.folder / "step-2" / MANIFEST).write_text("{")
    (store.folder / ".partial-ab").mkdir()
    before = names(store)
    assert [told.step for told in store.list()] == [3, 1]
    assert names(store) == before


def test_what_a_crash_leaves_is_swept(store: CheckpointStore) -> None:
    store.save(sample(1))
    for name in (".partial-ab", ".replaced-1"):
        (store.folder / name).mkdir()
        (store.folder / name / ARRAYS).write_bytes(b"half")
    (store.folder / ".partial-file").write_text("")
    assert newest(store) == (1, [])
    assert names(store) == ["step-1"]


def test_a_crash_between_the_two_renames_of_a_replacement_loses_nothing(store: CheckpointStore) -> None:
    store.save(sample(7))
    (store.folder / "step-7").rename(store.folder / ".replaced-7")
    assert newest(store) == (7, [])
    assert names(store) == ["step-7"]


def test_other_names_are_nobodys_business(store: CheckpointStore) -> None:
    store.save(sample(1))
    others = ("notes.txt", "step-0", "step-01", "step-x", ".replaced-x", "broken-by-me")
    for name in others:
        (store.folder / name).write_text("mine")
    assert newest(store) == (1, [])
    assert [told.step for told in store.list()] == [1]
    assert set(others) < set(names(store))


def test_nothing_is_left_of_a_deleted_job(store: CheckpointStore) -> None:
    for step in (1, 2):
        store.save(sample(step))
    (store.folder / ".partial-ab").mkdir()
    store.delete_all()
    store.delete_all()
    assert not store.folder.exists()
    assert store.folder.parent.is_dir()


@pytest.mark.parametrize(
    ("code", "advice"),
    [(errno.ENOSPC, "free space"), (errno.EACCES, "let the service's user write"), (errno.EIO, "check the disk")],
)
@pytest.mark.parametrize(
    ("call", "turn"), [("mkdir", 0), *(("fsync", k) for k in range(4)), *(("rename", k) for k in range(3))]
)
def test_a_disk_that_refuses_leaves_nothing_half_made(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, call: str, turn: int, code: int, advice: str
) -> None:
    """Each call of the system's that the replacement of a checkpoint makes, refused."""
    store.save(sample(1))
    store.save(sample(2))
    real, calls = getattr(os, call), list[int]()

    def refuse(*arguments: Any, **named: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == turn + 1:
            raise OSError(code, os.strerror(code), str(store.folder))
        return real(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(CheckpointStorageError) as caught:
            store.save(sample(2))
    assert caught.value.code == code
    assert str(store.folder) in str(caught.value)
    assert advice in str(caught.value)
    assert set(names(store)) - {".replaced-2"} == {"step-1", "step-2"}
    assert newest(store) == (2, [])
    assert names(store) == ["step-1", "step-2"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere: the kernel refuses it nothing")
def test_a_folder_that_may_not_be_written(store: CheckpointStore) -> None:
    store.save(sample(1))
    store.folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(CheckpointStorageError, match=r"let the service's user write there"):
            store.save(sample(2))
        assert names(store) == ["step-1"]
    finally:
        store.folder.chmod(stat.S_IRWXU)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "job_1").write_text("")
    with pytest.raises(CheckpointStorageError, match="job_1"):
        CheckpointStore(tmp_path / "job_1").save(sample(1))


def test_a_damaged_one_names_itself() -> None:
    assert str(CheckpointDamaged("/home/step-3", "torn")) == "the checkpoint /home/step-3 is damaged: torn"
