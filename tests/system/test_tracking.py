"""MLflow itself, a real server on SQLite: runs, points, versions and aliases, each once, however often it is tried."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.columns import Column, text_column
from core.model_file import Model, load_model, save_model
from core.network import NetworkSpec, initial_parameters
from core.preprocessing import Preprocessing, PreprocessingSpec
from service.child import Child
from service.embedded import mlflow_server, own_environment
from service.ports import LOOPBACK, free_port, held
from service.tracked import (
    JOB_TAG,
    Registration,
    RunDescription,
    RunReference,
    TrackedDataset,
    TrackedPoint,
    TrackingDown,
    TrackingRefused,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of MLflow's own, about its own type hints, at its import
    from service.tracking import Tracking

pytestmark = pytest.mark.system


def wait_for(url: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1):
                return
        except OSError:
            assert time.monotonic() < deadline, "MLflow did not come up"
            time.sleep(0.1)


@contextmanager
def server(folder: Path, port: int) -> Iterator[Child]:
    folder.mkdir(exist_ok=True)
    child = Child(mlflow_server(own_environment(), port, folder), folder / "mlflow.log", 3)
    try:
        wait_for(f"http://127.0.0.1:{port}")
        yield child
    finally:
        child.end()
        child.wait(10)


@pytest.fixture(scope="module")
def url(running: Any) -> str:
    return str(running.local.endpoints["mlflow"])


@pytest.fixture
def tracking(url: str) -> Tracking:
    return Tracking(url)


def description(job_id: str) -> RunDescription:
    return RunDescription(
        job_id=job_id,
        name="digits",
        experiment="flowers",
        started_at=1_700_000_000.1234,
        parameters={"network": {"hidden": [8]}, "dataset": "d" * 7000, "schedule": None, "loss": "cross_entropy"}
        | {f"extra{i}": i for i in range(250)},
        tags={"team": "vision"},
        dataset=TrackedDataset("digits", "ab" * 32, json.dumps({"id": "ds_1"}), None, json.dumps({"rows": 3})),
    )


def points(count: int, series: str = "train_loss") -> list[TrackedPoint]:
    return [TrackedPoint(series, step, 1.0 / step, 1_700_000_000 + step / 3) for step in range(1, count + 1)]


def history(tracking: Tracking, run_id: str, series: str) -> list[tuple[int, float, int]]:
    return [(m.step, m.value, m.timestamp) for m in tracking.client.get_metric_history(run_id, series)]


def test_a_run_is_made_once_and_holds_all_of_the_spec(tracking: Tracking) -> None:
    run = tracking.start_run(description("job_1"))
    assert tracking.start_run(description("job_1")) == run
    found = tracking.client.get_run(run.run_id)
    assert found.info.run_name == "digits"
    assert found.info.start_time == 1_700_000_000_123
    assert found.data.tags["team"] == "vision"
    assert found.data.tags[JOB_TAG] == "job_1"
    assert found.data.params["network.hidden"] == "[8]"
    assert found.data.params["schedule"] == "null"
    assert found.data.params["loss"] == "cross_entropy"
    assert len(found.data.params) == 254
    assert len(found.data.params["dataset"]) == 6000
    (dataset,) = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", ("ab" * 32)[:36])
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "training")]
    assert tracking.start_run(description("job_2")).run_id != run.run_id


def test_points_sent_twice_are_there_once_in_more_than_one_batch(tracking: Tracking) -> None:
    run = tracking.start_run(description("job_points"))
    sent = points(2300)
    tracking.log_points(run.run_id, sent[:1500])
    tracking.log_points(run.run_id, sent)
    expected = [(p.step, p.value, round(p.timestamp * 1000)) for p in sent]
    assert sorted(history(tracking, run.run_id, "train_loss")) == expected


def test_a_point_that_is_not_finite_is_kept_as_such(tracking: Tracking) -> None:
    run = tracking.start_run(description("job_nan"))
    for _ in range(2):
        tracking.log_points(run.run_id, [TrackedPoint("validation_loss", 1, None, 5.0)])
    ((step, value, _),) = history(tracking, run.run_id, "validation_loss")
    assert step == 1
    assert np.isnan(value)


@pytest.mark.parametrize(
    ("status", "expected"), [("succeeded", "FINISHED"), ("failed", "FAILED"), ("cancelled", "KILLED")]
)
def test_a_run_ends_as_its_job_did(tracking: Tracking, status: str, expected: str) -> None:
    run = tracking.start_run(description(f"job_{status}"))
    for _ in range(2):
        tracking.end_run(run.run_id, status, 1_700_000_100.5)
    found = tracking.client.get_run(run.run_id).info
    assert (found.status, found.end_time) == (expected, 1_700_000_100_500)
    # What arrives late is still taken: an outage may outlast the job.
    tracking.log_points(run.run_id, points(3))
    assert len(history(tracking, run.run_id, "train_loss")) == 3


def test_an_experiment_and_a_run_deleted_by_hand_come_back(tracking: Tracking) -> None:
    run = tracking.start_run(description("job_deleted"))
    tracking.client.delete_run(run.run_id)
    assert tracking.start_run(description("job_deleted")) == run
    tracking.log_points(run.run_id, points(2))
    tracking.client.delete_experiment(run.experiment_id)
    assert tracking.start_run(description("job_deleted")) == run
    tracking.log_points(run.run_id, points(4))
    assert len(history(tracking, run.run_id, "train_loss")) == 4


def model() -> Model:
    random = np.random.default_rng(1)
    rows = 40
    columns = {
        "x": Column("x", "number", random.normal(size=rows)),
        "count": Column("count", "integer", random.integers(0, 9, rows).astype(np.float64)),
        "flag": Column("flag", "boolean", random.integers(0, 2, rows).astype(np.float64)),
        "color": text_column("color", random.choice(["red", "green", ""], rows).tolist()),
        "label": Column("label", "integer", random.integers(0, 3, rows).astype(np.float64)),
    }
    spec = PreprocessingSpec(("x", "count", "flag", "color"), ("label",), "classification")
    fitted = Preprocessing.fit(spec, columns, np.arange(rows), (0, 1, 2))
    network = NetworkSpec(fitted.width, fitted.outputs, (8,), "relu")
    return Model(network, fitted, initial_parameters(network, 3), {"name": "m"}, "ab" * 32)


@pytest.fixture(scope="module")
def registration(tmp_path_factory: pytest.TempPathFactory) -> Registration:
    folder = tmp_path_factory.mktemp("artifact") / "model"
    trained = model()
    save_model(folder, trained)
    return Registration(
        job_id="job_register",
        name="flowers",
        artifact=folder,
        step=120,
        signature=trained.preprocessing.signature(),
        input_example=trained.input_example,
        metadata={"weights_sha256": trained.weights_sha256},
        tags={"fallline.weights_sha256": trained.weights_sha256},
    )


ROWS = [
    {"x": 0.5, "count": 3, "flag": True, "color": "red"},
    {"x": -1.25, "count": 8, "flag": False, "color": "blue"},
    {"x": None, "count": 0, "flag": True, "color": None},
]

PREDICT = """
import json, sys, warnings
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
rows = json.loads(sys.argv[3])
answers = {
    "objects": model.predict(pandas.DataFrame(rows)),
    "integers": model.predict(pandas.DataFrame([rows[0] | {"x": 2}])),
    "doubles": model.predict(pandas.DataFrame([rows[0] | {"count": 3.0}])),
}
shipped = sorted(name for name in sys.modules if name.startswith("fallline_core"))
print(json.dumps({"answers": answers, "shipped": shipped, "own": "core" in sys.modules,
                  "example": model.input_example is not None,
                  "inputs": model.metadata.signature.inputs.input_names()}))
"""


@pytest.fixture(scope="module")
def registered(url: str, registration: Registration) -> tuple[RunReference, int]:
    tracking = Tracking(url)
    run = tracking.start_run(description(registration.job_id))
    version = tracking.register(run, registration)
    tracking.set_production(registration.name, version)
    return run, version


def test_a_version_is_registered_once(
    tracking: Tracking, registered: tuple[RunReference, int], registration: Registration
) -> None:
    run, version = registered
    assert tracking.register(run, registration) == version == 1
    assert tracking.register(run, replace(registration, job_id="job_other")) == 2
    assert tracking.register(run, registration) == 1
    found = tracking.client.get_model_version(registration.name, "1")
    assert found.run_id == run.run_id
    assert found.tags[JOB_TAG] == registration.job_id
    assert found.tags["fallline.weights_sha256"] == registration.metadata["weights_sha256"]
    models = tracking.client.search_logged_models([run.experiment_id])
    assert {f"models:/{m.model_id}" for m in models} >= {found.source}
    linked = [json.loads(m.tags["mlflow.modelVersions"]) for m in models]
    assert sorted(link["version"] for links in linked for link in links) == [1, 2]
    assert [m.status.value for m in models] == ["READY", "READY"]
    outputs = tracking.client.get_run(run.run_id).outputs.model_outputs
    assert {(o.model_id, o.step) for o in outputs} == {(m.model_id, 120) for m in models}


def test_a_model_that_was_linked_before_a_crash_is_registered_after_it(
    tracking: Tracking, registration: Registration
) -> None:
    """MLflow refuses to link it a second time."""
    run = tracking.start_run(replace(description("job_lost"), experiment="lost"))
    lost = replace(registration, job_id="job_lost", name="lost")
    made = tracking._logged_model(run, lost)
    found = tracking.client.get_model_version(lost.name, str(tracking.register(run, lost)))
    assert found.source == f"models:/{made}"


def test_the_service_runs_nothing_that_an_artifact_ships(registered: tuple[RunReference, int]) -> None:
    assert not [name for name in sys.modules if name.startswith("fallline_core")]


def test_anybodys_mlflow_predicts_what_the_service_does(
    url: str, registered: tuple[RunReference, int], registration: Registration, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    uri = f"models:/{registration.name}@production"
    command = [sys.executable, "-P", "-W", "ignore", "-c", PREDICT, url, uri, json.dumps(ROWS)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["example"]
    assert said["inputs"] == ["x", "count", "flag", "color"]
    assert "fallline_core_1.model_file" in said["shipped"]
    assert not said["own"]
    served = load_model(registration.artifact)
    for name, rows in {"objects": ROWS, "integers": [ROWS[0] | {"x": 2.0}], "doubles": ROWS[:1]}.items():
        for there, here in zip(said["answers"][name], served.predict(rows), strict=True):
            assert there["label"] == here["label"]
            assert there["probabilities"] == pytest.approx(here["probabilities"], abs=1e-6)


def test_the_artifact_holds_no_pickle_and_the_files_themselves(
    tracking: Tracking, registered: tuple[RunReference, int], registration: Registration, tmp_path: Path
) -> None:
    found = tracking.client.get_model_version(registration.name, "1")
    import mlflow.artifacts

    folder = Path(
        mlflow.artifacts.download_artifacts(
            tracking.client.get_logged_model(found.source.removeprefix("models:/")).artifact_location,
            dst_path=str(tmp_path),
            tracking_uri=tracking.client.tracking_uri,
        )
    )
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"MLmodel", "model.json", "weights.safetensors", "code/fallline_core_1/model_file.py"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pyc"))]
    for path in registration.artifact.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_the_alias_moves_and_moves_by_hand_are_seen(
    tracking: Tracking, registered: tuple[RunReference, int], registration: Registration
) -> None:
    name = registration.name
    tracking.register(registered[0], replace(registration, job_id="job_other"))
    assert tracking.production([name, "no such model"]) == {name: 1}
    tracking.client.set_registered_model_alias(name, "production", "2")
    assert tracking.production([name]) == {name: 2}
    for version in (None, None, 1, 1):
        tracking.set_production(name, version)
        assert tracking.production([name]) == {name: version}


def test_what_mlflow_refuses_is_told_from_an_outage(tracking: Tracking) -> None:
    with pytest.raises(TrackingRefused, match="log_points"):
        tracking.log_points("0" * 32, points(1))
    with pytest.raises(TrackingRefused):
        tracking.set_production("no such model", 1)
    with pytest.raises(TrackingDown, match="check"):
        Tracking(f"http://127.0.0.1:{free_port()}").check()


def test_a_hung_server_costs_seconds(tracking: Tracking) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with pytest.raises(TrackingDown):
            Tracking(f"http://127.0.0.1:{silent.getsockname()[1]}").check()
        assert time.monotonic() - begun < 12


def test_an_outage_loses_nothing(tmp_path: Path) -> None:
    port = free_port()
    tracking = Tracking(f"http://127.0.0.1:{port}")
    with held(LOOPBACK, port):
        with server(tmp_path, port) as child:
            run = tracking.start_run(description("job_outage"))
            tracking.log_points(run.run_id, points(10))
            os.killpg(child.pid, signal.SIGKILL)
            child.wait(10)
            with pytest.raises(TrackingDown):
                tracking.log_points(run.run_id, points(20))
        with server(tmp_path, port):
            tracking.log_points(run.run_id, points(20))
            assert len(history(tracking, run.run_id, "train_loss")) == 20
