"""Looks inside a network that a whole service trains: in the job's metrics and in MLflow, whoever computed."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from service.local_service import LocalService

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


def test_layers_are_watched_in_the_metrics_and_in_mlflow(tmp_path: Path, new_service: Any, table: Path) -> None:
    found = []
    with LocalService(tmp_path / "home") as local:
        local.wait_until_ready()
        service, tracking = new_service(local), Tracking(local.endpoints["mlflow"])
        service.client.datasets.upload(table, name="points")
        for workers in (1, 2):
            spec = {**SPEC, "distribution": {"workers": workers, "shards": 2}}
            job = service.job(service.client.jobs.submit(spec)["id"], service.ended)
            assert job["status"] == "succeeded", job["error"]
            series = service.client.jobs.metrics(job["id"])["series"]
            looks = {name: points for name, points in series.items() if name.startswith("diagnostics/")}
            per_epoch = job["progress"]["steps"] // 6
            for name in ("layer1.saturation", "layer2.signal_spread", "layer3.bias.update_ratio"):
                assert looks[f"diagnostics/{name}"]["steps"] == [per_epoch * epoch for epoch in range(1, 7)]
            for name, points in looks.items():
                history = tracking.client.get_metric_history(job["mlflow"]["run_id"], name)
                wanted = list(zip(points["steps"], points["values"], strict=True))
                assert sorted((m.step, m.value) for m in history) == wanted
            told = [event["data"] for event in service.client.jobs.events_page(job["id"])["data"]]
            assert "diagnostics/" not in f"{job['metrics']} {told}"
            found.append(looks)
        service.client.close()
    assert found[0] == found[1]
