"""Jobs that start from another one's weights, over HTTP: what is taken over, kept, refused. The sources are real."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest

from core.model_file import load_model
from service import warm_start
from service.artifacts import ArtifactStore
from service.planning import training_plan
from service.records import JobRecord
from service.registrar import describe
from service.reports import model_metadata_of, result_of
from worker.checkpoint_store import CheckpointStore
from worker.errors import Paused
from worker.exchange import InProcessExchange
from worker.plan import StepPlan, TrainingResult
from worker.recorder import Recorder
from worker.trainer import Trainer
from worker.warm_start import FOLDER, preprocessing_sha256

from .conftest import Api

HEAD = "x,y,side,kind\n"
SPEC: dict[str, Any] = {
    "dataset": "leaves",
    "target": "kind",
    "network": {"hidden": [8], "activation": "tanh"},
    "training": {"epochs": 3, "early_stopping": None, "checkpoint_every_seconds": 86_400},
}
FIELD = "training.warm_start"


def leaves(seed: int, kinds: tuple[str, ...] = ("ash", "elm", "oak"), rows: int = 120) -> str:
    random = np.random.default_rng(seed)
    lines = []
    for k in range(rows):
        x, y = random.normal(k % 3, 0.5, 2)
        lines.append(f"{x:.3f},{y:.3f},{'left' if x < 1 else 'right'},{kinds[k % len(kinds)]}\n")
    return HEAD + "".join(lines)


@dataclass(frozen=True)
class Sources:
    """What the API knows of: a job that has a model, one that has checkpoints alone, one that has nothing."""

    api: Api
    trained: str
    cut_off: str
    queued: str

    def warm(self, value: Any, dry: bool = False, **changes: Any) -> httpx.Response:
        """POST a job of as little as suffices, that starts from `value`."""
        spec = {"dataset": "leaves", "target": "kind", **changes}
        spec["training"] = {"epochs": 2, **changes.get("training", {}), "warm_start": value}
        return self.api.client.post(f"/v1/jobs?dry_run={str(dry).lower()}", json=spec)

    def refused(self, value: Any, param: str, status: int = 422, **changes: Any) -> dict[str, Any]:
        """The error; a dry run says the same, and nothing is left of either."""
        before = set(self.api.settings.checkpoints.iterdir())
        answer, dry = self.warm(value, **changes), self.warm(value, dry=True, **changes)
        found: dict[str, Any] = answer.json()["error"]
        assert (answer.status_code, found["param"]) == (status, param), answer.text
        assert dry.json() == answer.json()
        assert set(self.api.settings.checkpoints.iterdir()) == before
        return found

    def job(self, answer: httpx.Response) -> JobRecord:
        assert answer.status_code == 201, answer.text
        return self.api.store.get_job(answer.json()["id"])


def run(api: Api, job_id: str, pause_at: int | None = None) -> TrainingResult | None:
    """What a trainer makes of the job; None: paused."""
    job = api.store.get_job(job_id)
    trainers: list[Trainer] = []

    def opened(plan: StepPlan, seed: int) -> InProcessExchange:
        exchange = InProcessExchange(plan, seed)
        run_steps: Callable[[int], Any] = exchange.run_steps

        def one(count: int) -> Any:
            reports = run_steps(1)
            if reports[-1].step == pause_at:
                trainers[0].pause()
            return reports

        exchange.run_steps = one  # type: ignore[method-assign]
        return exchange

    plan = training_plan(job, api.store.get_dataset(job.dataset_id), api.settings)
    trainers.append(Trainer(plan, Recorder(1), opened))
    if pause_at is None:
        return trainers[0].run()
    with pytest.raises(Paused):
        trainers[0].run()
    return None


def finish(api: Api, job_id: str, version: int) -> None:
    """Train the job, the only one that waits, and register its model."""
    result = run(api, job_id)
    assert result is not None
    held = api.store.claim_job("test", 60.0, job_id)
    assert held is not None
    sha256 = ArtifactStore(api.settings.artifacts).put(result.files)
    api.store.set_result(job_id, held.lease_epoch, result_of(result), sha256, model_metadata_of(result))
    api.store.record_version(job_id, version)
    api.store.finish_job(job_id, held.lease_epoch, "succeeded")


def submitted(api: Api, **changes: Any) -> str:
    answer = api.client.post("/v1/jobs", json={**SPEC, **changes})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.fixture(scope="module")
def sources(api: Api) -> Sources:
    api.upload(leaves(1), "leaves")
    trained = submitted(api)
    finish(api, trained, 1)
    cut_off = submitted(api)
    for step in (2, 5):
        run(api, cut_off, pause_at=step)
    queued = submitted(api)
    return Sources(api, trained, cut_off, queued)


def test_a_spec_of_next_to_nothing_takes_everything_over(sources: Sources) -> None:
    job = sources.job(sources.warm({"job": sources.trained}))
    source = sources.api.store.get_job(sources.trained)
    for name in ("features", "preprocessing", "network", "loss", "task"):
        assert job.spec[name] == source.spec[name]
    assert job.spec["training"]["warm_start"] == {"job": sources.trained}
    assert job.spec["training"]["epochs"] == 2
    assert source.result is not None
    assert job.plan["warm_start"]["weights_sha256"] == source.result["weights_sha256"]


def test_what_is_kept_is_the_sources_model_and_outlives_it(sources: Sources) -> None:
    api = sources.api
    source = submitted(api, name="short")
    finish(api, source, 1)
    job = sources.job(sources.warm({"job": source}))
    record = api.store.get_job(source)
    shutil.rmtree(api.settings.artifacts / (record.artifact_sha256 or ""))
    assert api.client.delete(f"/v1/jobs/{source}").status_code == 204
    plan = training_plan(job, api.store.get_dataset(job.dataset_id), api.settings)
    kept = load_model(plan.warm_start.folder if plan.warm_start else "")
    assert plan.warm_start is not None
    assert plan.data.fitted is not None
    assert kept.weights_sha256 == plan.warm_start.sha256 == (record.result or {})["weights_sha256"]
    assert preprocessing_sha256(kept.preprocessing) == plan.data.fitted.sha256
    result = run(api, job.id)
    assert result is not None
    assert result.weights_sha256 != kept.weights_sha256
    api.client.post(f"/v1/jobs/{job.id}/cancel")
    assert api.client.delete(f"/v1/jobs/{job.id}").status_code == 204
    assert not (api.settings.checkpoints / job.id).exists()


def test_a_step_means_the_parameters_of_that_checkpoint(sources: Sources) -> None:
    checkpoints = CheckpointStore(sources.api.settings.checkpoints / sources.cut_off)
    for step in (2, 5):
        job = sources.job(sources.warm({"job": sources.cut_off, "step": step}))
        kept = load_model(sources.api.settings.checkpoints / job.id / FOLDER)
        assert (kept.parameters == checkpoints.parameters(step)).all()
        assert job.spec["training"]["warm_start"] == {"job": sources.cut_off, "step": step}


def test_a_job_without_a_model_yet_means_its_newest_whole_checkpoint(sources: Sources) -> None:
    assert sources.job(sources.warm({"job": sources.cut_off})).spec["training"]["warm_start"]["step"] == 5
    arrays = sources.api.settings.checkpoints / sources.cut_off / "step-5" / "arrays.safetensors"
    content = arrays.read_bytes()
    try:
        arrays.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert sources.job(sources.warm({"job": sources.cut_off})).spec["training"]["warm_start"]["step"] == 2
        message = sources.refused({"job": sources.cut_off, "step": 5}, f"{FIELD}.step")["message"]
        assert "no checkpoint of step 5 that is whole (arrays.safetensors has another hash" in message
        assert message.endswith("it has 5, 2")
    finally:
        arrays.write_bytes(content)


def test_a_version_is_found_and_written_down_by_number(sources: Sources) -> None:
    client = sources.api.client
    by_number = sources.job(sources.warm({"model": "leaves", "version": 1}))
    by_job = sources.job(sources.warm({"job": sources.trained}))
    assert by_number.spec["training"]["warm_start"] == {"model": "leaves", "version": 1}
    assert by_number.plan["warm_start"] == by_job.plan["warm_start"]
    message = sources.refused({"model": "leaves"}, f"{FIELD}.model")["message"]
    assert message == "no version of leaves is deployed; name one: {model: leaves, version: 1}"
    assert client.post("/v1/models/leaves/deploy", json={"version": 1}).status_code == 200
    for value in ({"model": "leaves"}, {"model": "leaves", "alias": "production"}):
        assert sources.job(sources.warm(value)).spec == by_number.spec
    assert client.delete("/v1/models/leaves/deployment").status_code == 204


def test_a_resolved_spec_may_be_submitted_again(sources: Sources) -> None:
    for value in ({"job": sources.trained}, {"job": sources.cut_off}, {"model": "leaves", "version": 1}):
        first = sources.job(sources.warm(value))
        again = sources.api.client.post("/v1/jobs", json=first.spec)
        assert sources.job(again).spec == first.spec
        assert sources.job(again).plan["warm_start"] == first.plan["warm_start"]


def test_a_dry_run_tells_the_hashes_and_keeps_nothing(sources: Sources) -> None:
    before = set(sources.api.settings.checkpoints.iterdir())
    plan = sources.warm({"job": sources.trained}, dry=True).json()
    assert plan["warm_start"].keys() == {"weights_sha256", "preprocessing_sha256"}
    assert set(sources.api.settings.checkpoints.iterdir()) == before


def test_a_chain_of_starts_keeps_the_first_ones_preprocessing(sources: Sources) -> None:
    """From a job that has checkpoints alone, and that had started from another one itself."""
    api = sources.api
    api.upload(leaves(4), "others")
    middle = sources.job(sources.warm({"job": sources.trained}, dataset="others"))
    run(api, middle.id, pause_at=3)
    last = sources.job(sources.warm({"job": middle.id}, dataset="others"))
    hashes = middle.plan["warm_start"]
    assert last.plan["warm_start"]["preprocessing_sha256"] == hashes["preprocessing_sha256"]
    assert last.plan["warm_start"]["weights_sha256"] != hashes["weights_sha256"]


def test_fewer_classes_and_further_columns_are_the_same_schema(sources: Sources) -> None:
    rows = leaves(2, kinds=("ash", "oak")).splitlines()
    more = "\n".join([f"id,{rows[0]}", *(f"{k},{row}" for k, row in enumerate(rows[1:]))])
    sources.api.upload(more, "fewer")
    job = sources.job(sources.warm({"job": sources.trained}, dataset="fewer"))
    assert job.spec["features"] == ["x", "y", "side"]
    assert job.plan["layers"] == sources.api.store.get_job(sources.trained).plan["layers"]
    result = run(sources.api, job.id)
    assert result is not None
    assert b'"ash","elm","oak"' in result.files["model.json"]


def test_dropout_and_initializer_may_be_others(sources: Sources) -> None:
    network = {"dropout": 0.3, "input_dropout": 0.1, "input_noise": 0.2, "initializer": "lecun"}
    job = sources.job(sources.warm({"job": sources.trained}, network=network))
    assert job.spec["network"] == sources.api.store.get_job(sources.trained).spec["network"] | network
    assert run(sources.api, job.id) is not None


def test_layers_follow_what_is_stated_for_all(sources: Sources) -> None:
    api = sources.api
    layers = [{"units": 8, "dropout": 0.5}, {"units": 4, "activation": "relu"}]
    source = submitted(api, network={"layers": layers, "activation": "tanh"}, name="layered")
    run(api, source, pause_at=2)
    job = sources.job(sources.warm({"job": source}, network={"dropout": 0.0}))
    assert [(layer["units"], layer["dropout"]) for layer in job.spec["network"]["layers"]] == [(8, 0.0), (4, 0.0)]
    message = sources.refused({"job": source}, "network.activation", network={"activation": "relu"})["message"]
    assert "layer1: 8 tanh, layer2: 4 relu" in message
    same = [{"units": 8, "activation": "tanh"}, {"units": 4, "activation": "relu"}]
    assert sources.warm({"job": source}, network={"layers": same}).status_code == 201
    sources.refused({"job": source}, "network.layers", network={"layers": same[::-1]})


@pytest.mark.parametrize(
    ("param", "changes", "words"),
    [
        ("network.hidden", {"network": {"hidden": [9]}}, "has layer1: 8 tanh, layer2: 3; the spec states layer1: 9"),
        ("network.hidden", {"network": {"hidden": [8, 8]}}, "layer2: 8 tanh"),
        ("network.hidden", {"network": {"hidden": []}}, "the spec states layer1: 3"),
        ("network.activation", {"network": {"activation": "relu"}}, "layer1: 8 relu"),
        ("network.layer_norm", {"network": {"layer_norm": True}}, "with layer_norm"),
        ("network.layers", {"network": {"layers": [{"units": 8}, {"units": 8}]}}, "layer2: 8 tanh"),
        (
            "network.graph",
            {"network": {"graph": [{"name": "a", "inputs": ["features"], "units": 8}]}},
            "a: 8 tanh affine of features",
        ),
        ("loss", {"loss": "binary_cross_entropy"}, "binary_cross_entropy"),
        ("task", {"task": "regression"}, "has classification; the spec states regression"),
        ("target", {"target": "side"}, "has kind; the spec states side"),
        ("features", {"features": ["y", "x"]}, "the spec lacks 'side': leave features out"),
        ("features", {"features": {"exclude": ["y"]}}, "the spec lacks 'y'"),
        ("preprocessing.numeric", {"preprocessing": {"numeric": "none"}}, "has standardize; the spec states none"),
        ("training.precision", {"training": {"precision": "float64"}}, "has float32; the spec states float64"),
    ],
)
def test_what_would_make_other_weights_of_them_is_refused(
    sources: Sources, param: str, changes: dict[str, Any], words: str
) -> None:
    assert words in sources.refused({"job": sources.trained}, param, **changes)["message"]


def test_a_regression_keeps_its_loss_and_its_units(sources: Sources) -> None:
    api = sources.api
    changes: dict[str, Any] = {"target": ["y"], "features": ["x"], "loss": {"name": "huber", "delta": 2.0}}
    source = submitted(api, **changes)
    run(api, source, pause_at=2)
    scaled = HEAD + "".join(f"{k / 9},{1000 * k},left,ash\n" for k in range(90))
    api.upload(scaled, "scaled")
    job = sources.job(sources.warm({"job": source}, dataset="scaled", target=["y"]))
    assert (job.spec["loss"], job.spec["features"]) == ({"name": "huber", "delta": 2.0}, ["x"])
    fitted = load_model(api.settings.checkpoints / job.id / FOLDER).preprocessing
    assert fitted.target_scales is not None
    assert fitted.target_scales[0] < 10  # not that of thousands
    result = run(api, job.id)
    assert result is not None
    assert json.loads(result.files["model.json"])["preprocessing"] == fitted.to_json()
    message = sources.refused({"job": source}, "loss", target=["y"], loss="squared_error")["message"]
    assert "has huber of delta 2; the spec states squared_error" in message
    message = sources.refused({"job": source}, "loss", target=["y"], loss={"name": "huber", "delta": 1})["message"]
    assert "has huber of delta 2; the spec states huber of delta 1" in message


def test_the_order_of_the_features_is_the_sources(sources: Sources) -> None:
    job = sources.job(sources.warm({"job": sources.trained}, features=["side", "y", "x"]))
    assert job.spec["features"] == ["x", "y", "side"]


def test_other_columns_are_named(sources: Sources) -> None:
    rows = [f"{k},{'a' if k % 2 else 'b'},ash" for k in range(60)] + [f"{k},a,elm" for k in range(60)]
    sources.api.upload("x,y,kind\n" + "\n".join(rows), "unlike")
    error = sources.refused({"job": sources.trained}, "dataset", dataset="unlike")
    assert error["columns"] == ["y", "side"]
    name = sources.trained
    expected = (
        f"unlike has not the columns that {name} was trained on: 'y' is text, not number; 'side' (text) is missing"
    )
    assert error["message"] == expected


def test_a_class_that_the_source_does_not_know_is_named(sources: Sources) -> None:
    sources.api.upload(leaves(3, kinds=("ash", "yew", "fir")), "strange")
    error = sources.refused({"job": sources.trained}, "dataset", dataset="strange")
    assert (error["columns"], error["classes"]) == (["kind"], ["fir", "yew"])
    assert "holds fir, yew, which" in error["message"]
    assert error["message"].endswith("it knows ash, elm, oak")


def test_where_there_are_no_weights_that_is_said(sources: Sources) -> None:
    refused = sources.refused
    assert refused({"job": "job_none"}, f"{FIELD}.job")["message"] == "there is no job 'job_none'"
    message = refused({"job": sources.queued}, f"{FIELD}.job")["message"]
    assert message.startswith(f"{sources.queued} is queued and has no weights yet")
    assert refused({"job": sources.queued, "step": 3}, f"{FIELD}.step")["message"].endswith("it has none")
    assert refused({"job": sources.cut_off, "step": 3}, f"{FIELD}.step")["message"].endswith("it has 5, 2")
    assert refused({"model": "none"}, f"{FIELD}.model")["message"] == "there is no model 'none'"
    assert "the newest are 1" in refused({"model": "leaves", "version": 9}, f"{FIELD}.version")["message"]


def test_a_damaged_model_is_no_source(sources: Sources) -> None:
    source = sources.api.store.get_job(sources.trained)
    path = sources.api.settings.artifacts / (source.artifact_sha256 or "") / "weights.safetensors"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        for value in ({"job": sources.trained}, {"model": "leaves", "version": 1}):
            assert "weights.safetensors: damaged" in sources.refused(value, FIELD)["message"]
    finally:
        path.write_bytes(content)


def test_a_job_whose_arrays_and_model_are_gone_is_no_source(sources: Sources) -> None:
    prepared = sources.api.settings.prepared
    prepared.rename(prepared.with_name("away"))
    prepared.mkdir()
    try:
        message = sources.refused({"job": sources.cut_off}, f"{FIELD}.job")["message"]
        assert "how it treats its features is not known any more" in message
    finally:
        prepared.rmdir()
        prepared.with_name("away").rename(prepared)


def test_a_disk_that_does_not_take_the_copy_takes_no_job(sources: Sources) -> None:
    """A file stands where the checkpoints' folder is: nothing can be written below."""
    api = sources.api
    folder, first = api.settings.checkpoints, api.client.get("/v1/jobs").json()["first_id"]
    folder.rename(folder.with_name("elsewhere"))
    folder.touch()
    try:
        answer = sources.warm({"job": sources.trained})
    finally:
        folder.unlink()
        folder.with_name("elsewhere").rename(folder)
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")
    assert api.client.get("/v1/jobs").json()["first_id"] == first


def test_what_a_crash_kept_for_no_job_is_swept_in_time(sources: Sources) -> None:
    checkpoints = sources.api.settings.checkpoints
    owned = sources.job(sources.warm({"job": sources.trained})).id
    for name in (owned, "job_old", "job_new"):
        (checkpoints / name / FOLDER).mkdir(parents=True, exist_ok=True)
    long_ago = time.time() - 2 * warm_start.ABANDONED_SECONDS
    for name in (owned, "job_old"):
        os.utime(checkpoints / name / FOLDER, (long_ago, long_ago))
    warm_start.sweep(sources.api.store, checkpoints)
    assert [(checkpoints / name).exists() for name in (owned, "job_old", "job_new")] == [True, False, True]
    shutil.rmtree(checkpoints / "job_new")


def test_mlflow_is_told_where_it_started(sources: Sources) -> None:
    store = sources.api.store
    told = {
        f"{sources.cut_off} at step 5": {"job": sources.cut_off},
        sources.trained: {"job": sources.trained},
        "version 1 of leaves": {"model": "leaves", "version": 1},
    }
    for name, value in told.items():
        job = sources.job(sources.warm(value))
        assert describe(store, job).tags == {"fallline.warm_start": name}
    assert describe(store, store.get_job(sources.queued)).tags == {}
