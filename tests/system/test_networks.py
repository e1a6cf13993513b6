"""What a spec may say of network, loss, optimizer and schedule, through a whole service: trained, kept, predicting."""

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of MLflow's own, about its own type hints, at its import
    from service.tracking import Tracking

pytestmark = pytest.mark.system

GRAPH = [
    {"name": "stem", "inputs": ["features"], "units": 24},
    {"name": "branch", "inputs": ["stem"], "units": 24},
    {"name": "joined", "inputs": ["stem", "branch"], "operation": "sum", "layer_norm": False},
]
CASES: dict[str, dict[str, Any]] = {
    "residual": {
        "target": "kind",
        "network": {"activation": "gelu", "layer_norm": True, "graph": GRAPH},
    },
    "binary": {
        "target": "kind",
        "network": {"hidden": [16]},
        "loss": "binary_cross_entropy",
        "training": {"class_weight": "balanced"},
    },
    "weights": {
        "target": "kind",
        "network": {"layers": [{"units": 16, "activation": {"name": "leaky_relu", "negative_slope": 0.1}}]},
        "training": {"class_weight": {"out, far!": 3.0}},
    },
    "huber": {
        "target": "distance",
        "network": {"hidden": [32], "activation": "elu"},
        "loss": {"name": "huber", "delta": 0.7},
        "schedule": {"name": "one_cycle", "warmup": 0.05},
    },
    "max_norm": {
        "target": "kind",
        "network": {"hidden": [32], "dropout": 0.1, "input_noise": 0.1, "input_dropout": 0.02},
        "optimizer": {"learning_rate": 0.01, "max_norm": 3.0, "l1": 1e-5, "reference_batch_size": 32},
    },
    "float64": {
        "target": "kind",
        "network": {"hidden": [16], "activation": "softplus", "initializer": "orthogonal"},
        "training": {"precision": "float64"},
        "schedule": {"name": "step", "factor": 0.5, "every": 0.3},
    },
}


def write_table(path: Path) -> None:
    """900 points, a third of them far from the middle, and how far."""
    random = np.random.default_rng(6)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", "side", "kind", "distance"])
        for x, y in random.normal(size=(900, 2)):
            distance = float(np.hypot(x, y))
            writer.writerow([x, y, "left" if x < 0 else "right", "out, far!" if distance > 1.5 else "in", distance])


@pytest.fixture(scope="module")
def dataset(running: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its id."""
    path = tmp_path_factory.mktemp("networks") / "distances.csv"
    write_table(path)
    return str(running.client.datasets.upload(path)["id"])


@pytest.mark.parametrize("case", CASES)
def test_a_network_is_trained_kept_and_answers(running: Any, dataset: str, case: str) -> None:
    given = CASES[case]
    training = {"epochs": 25, "batch_size": 64} | given.get("training", {})
    spec = {"dataset": dataset, "name": case, "distribution": {"shards": 2}, **given, "training": training}
    spec = {"features": ["x", "y", "side"], "optimizer": {"learning_rate": 0.01}} | spec
    job = running.job(running.client.jobs.submit(spec)["id"], running.ended)
    assert job["status"] == "succeeded", job["error"]
    if case == "huber":
        assert job["metrics"]["validation_r2"] > 0.8
    else:
        assert job["metrics"]["validation_accuracy"] > 0.85
    far, near = {"x": 3.0, "y": 0.1, "side": "right"}, {"x": 0.1, "y": -0.1, "side": "left"}
    answers = running.client.predict(case, [far, near], version=1)["predictions"]
    if case == "huber":
        assert answers[0]["value"] > answers[1]["value"] + 1
    else:
        assert [answer["label"] for answer in answers] == ["out, far!", "in"]
        assert all(sum(answer["probabilities"].values()) == pytest.approx(1) for answer in answers)
    # what was resolved is a spec: submitted again, it gives the same weights
    again = running.job(running.client.jobs.submit(job["spec"] | {"model": None})["id"], running.ended)
    assert again["result"]["weights_sha256"] == job["result"]["weights_sha256"]
    assert again["spec"] == job["spec"] | {"model": None}
    run = Tracking(running.local.endpoints["mlflow"]).client.get_run(job["mlflow"]["run_id"])
    assert run.data.params["training.precision"] == training.get("precision", "float32")
