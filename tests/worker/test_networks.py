"""Whole trainings of every kind of network in this process: they learn, and their files predict the same."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.model_file import load_model
from core.network import Network, NetworkSpec
from core.optimizers import OptimizerSpec
from core.parameters import weights_sha256
from core.schedules import ScheduleSpec
from worker.dataset import prepare
from worker.exchange import InProcessExchange
from worker.plan import TrainingPlan, TrainingResult
from worker.recorder import Recorder
from worker.trainer import Trainer

MakePlan = Callable[..., TrainingPlan]

RESIDUAL = (
    {"name": "c", "inputs": ("a", "b"), "operation": "sum"},
    {"name": "a", "inputs": ("features",), "units": 16},
    {"name": "b", "inputs": ("a",), "units": 16, "layer_norm": True, "dropout": 0.1},
)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "graph": (
        "values",
        {"graph": RESIDUAL, "activation": "gelu", "loss": "huber", "huber_delta": 0.5},
        {"schedule": ScheduleSpec("one_cycle")},
    ),
    "layers": (
        "classes",
        {
            "layers": ({"units": 16, "activation": {"name": "leaky_relu", "negative_slope": 0.2}}, {"units": 8}),
            "activation": "tanh",
            "layer_norm": True,
            "dropout": 0.2,
            "input_noise": 0.1,
            "input_dropout": 0.1,
            "dtype": "float64",
        },
        {"data": {"class_weight": "balanced"}},
    ),
    "max_norm": (
        "classes",
        {"hidden": (16, 8), "dropout": 0.2},
        {"optimizer": OptimizerSpec("adamw", 0.02, l1=1e-4, max_norm=1.5), "schedule": ScheduleSpec("step")},
    ),
}


def trained(plan: TrainingPlan) -> TrainingResult:
    return Trainer(plan, Recorder(workers=1), InProcessExchange).run()


@pytest.mark.parametrize("case", CASES)
def test_a_trained_network_predicts_the_same_after_it_was_kept(make_plan: MakePlan, tmp_path: Path, case: str) -> None:
    table, network, changes = CASES[case]
    plan = make_plan(table, network=NetworkSpec(1, 2, **network), epochs=30, **changes)
    result = trained(plan)
    metric = "validation_r2" if table == "values" else "validation_accuracy"
    assert result.metrics[metric] > 0.6
    for name, content in result.files.items():
        (tmp_path / name).write_bytes(content)
    model = load_model(tmp_path)
    assert (model.weights_sha256, model.model_sha256) == (result.weights_sha256, result.model_sha256)
    prepared = prepare(plan.data)
    fitted = prepared.preprocessing
    assert model.network == replace(plan.network, inputs=fitted.width, outputs=fitted.outputs)

    features, targets, _ = prepared.arrays("validation")
    outputs = Network(model.network, 7).predict(model.parameters, features.astype(model.network.dtype))
    if table == "classes":
        hits = float(np.mean(outputs.argmax(axis=1) == targets))
        assert hits == pytest.approx(result.metrics[metric])
    else:
        error = np.sqrt(np.mean((outputs - targets) ** 2, axis=0)) @ fitted.target_scales / 2
        assert error == pytest.approx(result.metrics["validation_rmse"])
    answers = model.predict(result.input_example)
    assert answers == load_model(tmp_path).predict(result.input_example)
    assert trained(plan).weights_sha256 == result.weights_sha256 == weights_sha256(model.parameters)


def test_what_a_network_is_decides_its_weights(make_plan: MakePlan) -> None:
    """None of these is accepted and ignored."""
    plan = make_plan(network=NetworkSpec(1, 2, (8,)), epochs=1)
    changes: list[TrainingPlan] = [
        plan,
        *(
            replace(plan, network=replace(plan.network, **change))
            for change in (
                {"activation": "gelu"},
                {"activation": {"name": "elu", "alpha": 0.5}},
                {"activation": "elu"},
                {"initializer": "lecun"},
                {"initializer": "orthogonal"},
                {"dropout": 0.1},
                {"input_dropout": 0.1},
                {"input_noise": 0.1},
                {"layer_norm": True},
                {"hidden": (), "graph": ({"name": "a", "inputs": ("features",), "units": 8, "activation": "silu"},)},
            )
        ),
        *(
            replace(plan, optimizer=replace(plan.optimizer, **change))
            for change in ({"l1": 0.1}, {"max_norm": 0.1}, {"learning_rate": 0.02})
        ),
        *(replace(plan, schedule=ScheduleSpec(name)) for name in ("step", "exponential", "inverse", "one_cycle")),
        replace(plan, schedule=ScheduleSpec("step", factor=0.5)),
        replace(plan, schedule=ScheduleSpec("step", every=0.5)),
        replace(plan, data=replace(plan.data, class_weight="balanced")),
        replace(plan, data=replace(plan.data, class_weight=(("ash", 2.0),))),
    ]
    found = [trained(changed).weights_sha256 for changed in changes]
    assert len(set(found)) == len(changes)
