"""Class weights: prepared beside the arrays, folded into the training rows' weights when a worker attaches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.class_weights import fold
from core.errors import SpecificationError
from core.network import Network, NetworkSpec, initial_parameters
from core.optimizers import OptimizerSpec
from core.parameters import weights_sha256
from worker.dataset import PreparedDataset, prepare
from worker.exchange import InProcessExchange
from worker.gradient_worker import GradientWorker
from worker.plan import StepPlan, TrainingPlan

MakePlan = Callable[..., TrainingPlan]
MakeStepPlan = Callable[..., tuple[StepPlan, PreparedDataset]]
GIVEN = (("beech", 4.0), ("cedar", 0.5))  # ash has 1


@pytest.mark.parametrize("weight_column", [None, "weight"])
def test_balanced_counts_the_training_rows_alone(make_plan: MakePlan, weight_column: str | None) -> None:
    data = make_plan(data={"class_weight": "balanced", "weight_column": weight_column}).data
    prepared = prepare(data)
    counts = np.bincount(prepared.arrays("train")[1], minlength=3)
    assert len(set(counts)) == 3
    assert prepared.class_weights == tuple(counts.sum() / (3 * counts))


def test_weights_are_by_class_and_one_for_the_others(make_plan: MakePlan) -> None:
    prepared = prepare(make_plan(data={"class_weight": GIVEN}).data)
    assert prepared.preprocessing.classes == ("ash", "beech", "cedar")
    assert prepared.class_weights == (1.0, 4.0, 0.5)


def test_the_arrays_are_those_without_class_weights_and_take_no_room(make_plan: MakePlan) -> None:
    plain = prepare(make_plan(data={"weight_column": "weight"}).data)
    weighted = prepare(make_plan(data={"weight_column": "weight", "class_weight": GIVEN}).data)
    assert (plain.class_weights, weighted.rows) == (None, plain.rows)
    assert plain.folder != weighted.folder
    for split in plain.rows:
        for ours, theirs in zip(plain.arrays(split), weighted.arrays(split), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for path in plain.folder.glob("*.npy"):
        assert path.samefile(weighted.folder / path.name)


def test_a_damaged_entry_is_rebuilt(make_plan: MakePlan, tmp_path: Path) -> None:
    data = make_plan(data={"class_weight": "balanced", "cache_folder": str(tmp_path)}).data
    first = prepare(data)
    content = (first.folder / "targets.train.npy").read_bytes()
    (first.folder / "targets.train.npy").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    again = prepare(data)
    assert (again.folder / "targets.train.npy").read_bytes() == content
    assert again.class_weights == first.class_weights
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_no_class_is_refused(make_plan: MakePlan) -> None:
    with pytest.raises(SpecificationError, match=r"training\.class_weight is 'oak'"):
        prepare(make_plan(data={"class_weight": (("oak", 2.0),)}).data)
    with pytest.raises(SpecificationError, match="no classes"):
        prepare(make_plan("values", data={"class_weight": "balanced"}).data)


@pytest.mark.parametrize("weight_column", [None, "weight"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_rows_count_by_their_class(
    make_step_plan: MakeStepPlan, weight_column: str | None, dtype: str
) -> None:
    given: dict[str, Any] = {"class_weight": GIVEN, "weight_column": weight_column}
    plan, prepared = make_step_plan(data=given, dtype=dtype, shards=1)
    worker, parameters = GradientWorker(), initial_parameters(plan.network, 3)
    worker.attach(plan)
    found, wanted = np.empty_like(parameters), np.empty_like(parameters)
    report = worker.gradient(2, 0, parameters, found)
    features, targets, weights = prepared.arrays("train")
    rows = plan.sampling.order(1, 0)[plan.sampling.part(2, 0)]
    folded = np.array([1.0, 4.0, 0.5])[targets[rows]] * (1.0 if weights is None else weights[rows])
    x = features[rows].astype(dtype)
    loss = Network(plan.network, len(rows)).loss_and_gradient(
        parameters, wanted, x, targets[rows], folded.astype(dtype)
    )
    assert (report.loss_sum, report.weight_sum) == (loss, folded.sum())
    np.testing.assert_array_equal(found, wanted)


def test_validation_rows_keep_their_own_weights(make_step_plan: MakeStepPlan) -> None:
    sums = []
    for given in (None, GIVEN):
        plan, _ = make_step_plan(data={"class_weight": given, "weight_column": "weight"})
        worker = GradientWorker()
        worker.attach(plan)
        sums.append(worker.evaluations("validation", (0, 1, 2), initial_parameters(plan.network, 3)))
    np.testing.assert_array_equal(*sums)


def test_weights_of_one_change_no_bit(make_step_plan: MakeStepPlan) -> None:
    found = []
    for given in (None, (("ash", 1.0),)):
        plan, _ = make_step_plan(data={"class_weight": given})
        worker, parameters = GradientWorker(), initial_parameters(plan.network, 3)
        worker.attach(plan)
        found.append(worker.gradients(1, (0, 1), parameters)[0].tobytes())
    assert found[0] == found[1]


def test_folding_is_by_the_rows_class() -> None:
    np.testing.assert_array_equal(fold((1.0, 4.0, 0.5), np.array([2, 1, 0]), None), np.array([0.5, 4, 1], "f4"))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_weights_are_the_same_for_any_number_of_workers(
    make_step_plan: MakeStepPlan, site: Any, workers: int
) -> None:
    """Of a network with all that a spec may ask of it."""
    graph = (
        {"name": "a", "inputs": ("features",), "units": 9, "layer_norm": True, "dropout": 0.3},
        {"name": "b", "inputs": ("a",), "units": 9, "activation": "gelu"},
        {"name": "c", "inputs": ("a", "b"), "operation": "sum"},
    )
    network = NetworkSpec(1, 3, input_dropout=0.1, graph=graph)  # type: ignore[arg-type]  # mappings will do
    optimizer = OptimizerSpec("adamw", 0.01, l1=1e-3, max_norm=1.0)
    plan, _ = make_step_plan(data={"class_weight": "balanced"}, network=network, optimizer=optimizer)
    alone, together = InProcessExchange(plan, 5), site(plan, workers).open()
    for exchange in (alone, together):
        exchange.run_steps(12)
    assert weights_sha256(together.parameters()) == weights_sha256(alone.parameters())
    for exchange in (alone, together):
        exchange.close()
