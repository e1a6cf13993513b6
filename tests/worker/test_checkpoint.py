"""A checkpoint on disk: it comes back bit by bit, and whatever is not as it was written is refused."""

import hashlib
import json
import math
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from core.optimizers import OptimizerSpec
from worker.checkpoint import (
    ARRAYS,
    MANIFEST,
    Checkpoint,
    plan_digest,
    read_checkpoint,
    read_description,
    sealed,
    unsealed,
    write_checkpoint,
)
from worker.errors import CheckpointDamaged, CheckpointError, CheckpointRefused, CheckpointStorageError
from worker.plan import EarlyStopping, MetricPoint, TrainingPlan
from worker.stopping import StoppingState

PLAN = "5" * 64
MakePlan = Callable[..., TrainingPlan]


def sample(**changes: Any) -> Checkpoint:
    rng = np.random.default_rng(3)
    found = Checkpoint(
        job_id="job_1",
        attempt=2,
        plan_sha256=PLAN,
        numerics="numpy-2/openblas/0123456789abcdef",
        step=311,
        epoch=2,
        parameters=rng.normal(size=1001).astype(np.float32),
        optimizer_state=rng.normal(size=(2, 1001)).astype(np.float32),
        best=rng.normal(size=1001).astype(np.float32),
        stopping=StoppingState(1, 0.1 + 0.2),
        loss_sum=1 / 3,
        weight_sum=1e-300,
        points=(MetricPoint("train_loss", 310, math.pi, 1.7e9 + 0.1), MetricPoint("validation_loss", 280, 5e-324, 0.5)),
        latest={"train_loss": math.pi, "validation_accuracy": 0.7},
        worker_failures=4,
        seconds=12.25,
    )
    return replace(found, **changes)


def assert_same(found: Checkpoint, wanted: Checkpoint) -> None:
    for field in fields(Checkpoint):
        ours, theirs = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(theirs, np.ndarray):
            assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())
        else:
            assert ours == theirs, field.name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"best": None, "stopping": StoppingState()},
        {"optimizer_state": np.zeros((0, 1001), np.float32)},
        {"parameters": np.array([-0.0, np.nan, np.inf]), "optimizer_state": np.ones((1, 3)), "best": np.arange(3.0)},
        {"stopped": "early_stopping", "points": (), "latest": {}, "epoch": 0},
    ],
)
def test_it_comes_back_bit_by_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    wanted = sample(**changes)
    described = write_checkpoint(tmp_path, wanted)
    assert_same(read_checkpoint(tmp_path, PLAN), wanted)
    assert read_description(tmp_path) == described
    assert (described.step, described.epoch, described.attempt) == (311, wanted.epoch, 2)
    assert described.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_the_files_are_what_they_are_called(tmp_path: Path) -> None:
    """Any program that reads safetensors reads the arrays."""
    write_checkpoint(tmp_path, wanted := sample())
    arrays = safetensors.numpy.load_file(tmp_path / ARRAYS)
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in wanted.arrays().items()
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [ARRAYS, MANIFEST]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"step": 0}, "step is 0"),
        ({"epoch": 312}, "epoch is 312"),
        ({"epoch": -1}, "epoch is -1"),
        ({"best": None}, "best and stopping"),
        ({"parameters": np.zeros(1001, np.int32)}, "parameters is of int32"),
        ({"parameters": np.zeros(1001)}, "optimizer_state is float32"),
        ({"optimizer_state": np.zeros((2, 1000), np.float32)}, "optimizer_state is float32 (2, 1000)"),
        ({"optimizer_state": np.zeros((1001, 2), np.float32).T}, "expected contiguous float32 (2, 1001)"),
        ({"best": np.zeros((1, 1001), np.float32)}, "best is float32 (1, 1001)"),
    ],
)
def test_what_does_not_fit_together_is_no_checkpoint(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        sample(**changes)
    assert named in str(caught.value)


def forge(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A manifest whose own hash is right and whose content is not."""
    body, _ = unsealed((folder / MANIFEST).read_bytes())
    change(body)
    (folder / MANIFEST).write_bytes(sealed(body))


def other_arrays(folder: Path) -> None:
    """Whole files, hashes and all, that do not make a checkpoint."""
    safetensors.numpy.save_file({"parameters": np.zeros(9, np.float32)}, folder / "other")
    content = (folder / "other").read_bytes()
    said = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    forge(folder, lambda body: body["files"].update({ARRAYS: said}))
    os.replace(folder / "other", folder / ARRAYS)


def sparse(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "arrays longer": (lambda f: sparse(f / ARRAYS, 1 << 40), "bytes, not"),
    "arrays shorter": (lambda f: sparse(f / ARRAYS, (f / ARRAYS).stat().st_size - 1), "bytes, not"),
    "arrays empty": (lambda f: sparse(f / ARRAYS, 0), "has 0 bytes"),
    "arrays zeroed": (lambda f: (f / ARRAYS).write_bytes(bytes((f / ARRAYS).stat().st_size)), "another hash"),
    "arrays gone": (lambda f: (f / ARRAYS).unlink(), "arrays.safetensors is missing"),
    "arrays a folder": (lambda f: ((f / ARRAYS).unlink(), (f / ARRAYS).mkdir()), "bytes, not|Is a directory"),
    "manifest gone": (lambda f: (f / MANIFEST).unlink(), "manifest.json is missing"),
    "manifest empty": (lambda f: sparse(f / MANIFEST, 0), "Expecting value"),
    "manifest zeroed": (lambda f: (f / MANIFEST).write_bytes(bytes(500)), "Expecting value"),
    "manifest cut": (lambda f: sparse(f / MANIFEST, 700), "Unterminated|Expecting|delimiter"),
    "manifest huge": (lambda f: sparse(f / MANIFEST, 1 << 40), "manifest.json has 1099511627776 bytes"),
    "manifest a list": (lambda f: (f / MANIFEST).write_text("[1]"), "holds no object"),
    "manifest nested": (lambda f: (f / MANIFEST).write_text("[" * 100_000), "nested too deeply"),
    "manifest unsealed": (lambda f: (f / MANIFEST).write_text("{}"), "another hash than it says"),
    "manifest a folder": (lambda f: ((f / MANIFEST).unlink(), (f / MANIFEST).mkdir()), "Is a directory"),
    "another size said": (lambda f: forge(f, lambda b: b["files"][ARRAYS].update(size=1 << 60)), "bytes, not"),
    "another hash said": (lambda f: forge(f, lambda b: b["files"][ARRAYS].update(sha256="0" * 64)), "another hash"),
    "a field less": (lambda f: forge(f, lambda b: b["state"].pop("step")), "step"),
    "a field more": (lambda f: forge(f, lambda b: b["state"].update(colour=1)), "colour"),
    "a field wrong": (lambda f: forge(f, lambda b: b["state"].update(epoch=-3)), "epoch is -3"),
    "other arrays": (other_arrays, "optimizer_state"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_named(tmp_path: Path, damage: str) -> None:
    write_checkpoint(tmp_path, sample())
    do, reason = DAMAGE[damage]
    do(tmp_path)
    with pytest.raises(CheckpointDamaged, match=reason) as caught:
        read_checkpoint(tmp_path, PLAN)
    assert str(tmp_path) in str(caught.value)


def is_damaged(folder: Path) -> bool:
    try:
        read_checkpoint(folder, PLAN)
    except CheckpointDamaged:
        return True
    return False


@pytest.mark.parametrize("name", [ARRAYS, MANIFEST])
def test_every_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, sample())
    whole = (tmp_path / name).read_bytes()
    seed = int.from_bytes(os.urandom(4), "big")
    places = np.random.default_rng(seed).integers(0, 8 * len(whole), 300)
    for place in (0, 8 * len(whole) - 1, *places.tolist()):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        (tmp_path / name).write_bytes(flipped)
        assert is_damaged(tmp_path), f"bit {place} of {name}, seed {seed}"


def test_one_of_another_plan_is_refused_and_not_called_damaged(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, sample())
    with pytest.raises(CheckpointRefused, match=f"the plan {PLAN}, not to {'6' * 64}; go on with the plan"):
        read_checkpoint(tmp_path, "6" * 64)


def test_one_of_a_later_format_is_refused_and_not_called_damaged(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, sample())
    forge(tmp_path, lambda body: body.update(format=2))
    for read in (read_description, lambda folder: read_checkpoint(folder, PLAN)):
        with pytest.raises(CheckpointRefused, match="its format is 2; this version reads 1"):
            read(tmp_path)


def test_a_plans_digest_is_of_what_decides_its_training(make_plan: MakePlan) -> None:
    plan = make_plan()
    digest = plan_digest(plan)
    assert len(digest) == 64
    data, network = plan.data, plan.network
    same = [
        replace(plan, job_id="job_2", max_seconds=3.0, spec={"name": "x"}),
        replace(plan, data=replace(data, dataset_folder="/moved", cache_folder="/elsewhere")),
    ]
    assert {plan_digest(other) for other in same} == {digest}
    others = [
        replace(plan, seed=1),
        replace(plan, epochs=4),
        replace(plan, shards=2),
        replace(plan, batch_size=31),
        replace(plan, threads_per_worker=2),
        replace(plan, log_every_steps=2),
        replace(plan, early_stopping=EarlyStopping(3)),
        replace(plan, early_stopping=EarlyStopping(3, 0.5)),
        replace(plan, early_stopping=EarlyStopping(4)),
        replace(plan, optimizer=OptimizerSpec("adamw", 0.02, weight_decay=0.01, clip_norm=1.0)),
        replace(plan, schedule=replace(plan.schedule, warmup=0.2)),
        replace(plan, network=replace(network, hidden=(24, 13))),
        replace(plan, data=replace(data, split_seed=1)),
        replace(plan, data=replace(data, dataset_sha256="0" * 64)),
    ]
    assert len({digest, *(plan_digest(other) for other in others)}) == len(others) + 1


@dataclass(frozen=True)
class LaterPlan(TrainingPlan):
    """What a plan is in a later version."""

    later: int = 7


def test_a_field_that_comes_later_disowns_no_checkpoint(make_plan: MakePlan) -> None:
    plan = make_plan(early_stopping=EarlyStopping(3))
    held = {field.name: getattr(plan, field.name) for field in fields(plan)}
    assert plan_digest(LaterPlan(**held)) == plan_digest(plan)
    assert plan_digest(LaterPlan(**held, later=8)) != plan_digest(plan)


@pytest.mark.parametrize(
    "error",
    [
        CheckpointStorageError("/x", 28),
        CheckpointDamaged("/x", "torn"),
        CheckpointRefused("/x", "of another plan", "do this"),
    ],
)
def test_errors_survive_pickling(error: CheckpointError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    assert "/x" in str(error)


def test_a_manifest_is_json_that_people_can_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, sample(best=None, stopping=StoppingState()))
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["state"]["stopping"] == [None, None]
    assert manifest["files"][ARRAYS]["size"] == (tmp_path / ARRAYS).stat().st_size
