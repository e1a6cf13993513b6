"""Looks inside a network that a whole service trains: in the job's metrics and in MLflow, whoever computed."""

import warnings
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of MLflow's own, about its own type hints, at its import
    from service.tracking import Tracking

pytestmark = pytest.mark.system

SPEC: dict[str, Any] = {
    "dataset": "points",
    "target": "kind",
    "network": {"hidden": [12, 8]},
    "training": {"epochs": 6, "batch_size": 128, "early_stopping": None},
}


def test_layers_are_watched_in_the_metrics_and_in_mlflow(running: Any) -> None:
    found = []
    tracking = Tracking(running.local.endpoints["mlflow"])
    for workers in (1, 2):
        spec = {**SPEC, "distribution": {"workers": workers, "shards": 2}}
        job = running.job(running.client.jobs.submit(spec)["id"], running.ended)
        assert job["status"] == "succeeded", job["error"]
        series = running.client.jobs.metrics(job["id"])["series"]
        looks = {name: points for name, points in series.items() if name.startswith("diagnostics/")}
        per_epoch = job["progress"]["steps"] // 6
        for name in ("layer1.saturation", "layer2.signal_spread", "layer3.bias.update_ratio"):
            assert looks[f"diagnostics/{name}"]["steps"] == [per_epoch * epoch for epoch in range(1, 7)]
        for name, points in looks.items():
            history = tracking.client.get_metric_history(job["mlflow"]["run_id"], name)
            wanted = list(zip(points["steps"], points["values"], strict=True))
            assert sorted((m.step, m.value) for m in history) == wanted
        told = [event["data"] for event in running.client.jobs.events_page(job["id"])["data"]]
        assert "diagnostics/" not in f"{job['metrics']} {told}"
        found.append(looks)
    assert found[0] == found[1]
