"""Models over HTTP: what is registered, what is deployed, and predictions that are core's own, through every swap."""

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from core.columns import Column
from core.model_file import Model, model_bytes
from core.network import NetworkSpec, initial_parameters
from core.preprocessing import Preprocessing, PreprocessingSpec
from service.artifacts import ArtifactStore
from service.predictor import Predictor
from service.store import Store

from .conftest import Api, Fill

ROWS: list[Any] = [{"x": 0.5, "side": "left"}, [2.0, "right"], {"x": None, "side": ""}, {"side": "up", "x": 7}]
RNG = np.random.default_rng(3)
X = Column("x", "number", RNG.normal(0, 2, 60))
SIDE = Column("side", "text", RNG.integers(-1, 2, 60).astype(np.int32), ("left", "right"))
TARGETS = {
    "texts": Column("t", "text", RNG.integers(0, 3, 60).astype(np.int32), ("ash", "beech", "elm")),
    "integers": Column("t", "integer", RNG.integers(4, 7, 60).astype(np.float64)),
    "booleans": Column("t", "boolean", RNG.integers(0, 2, 60).astype(np.float64)),
    "values": Column("t", "number", RNG.normal(40, 5, 60)),
}


def network_model(kind: str, seed: int = 0, numeric: str = "standardize") -> Model:
    """A network as it is before the first step, behind a preprocessing that has been fitted."""
    target = TARGETS[kind]
    task = "regression" if kind == "values" else "classification"
    spec = PreprocessingSpec(("x", "side"), ("t",), task, numeric=numeric)
    columns = {"x": X, "side": SIDE, "t": target}
    fitted = Preprocessing.fit(spec, columns, np.arange(60), None)
    loss = "squared_error" if kind == "values" else "cross_entropy"
    network = NetworkSpec(fitted.width, fitted.outputs, (8,), loss=loss)
    return Model(network, fitted, initial_parameters(network, seed), {"seed": seed}, "ab" * 32)


def register(api: Api, name: str, number: int, model: Model) -> None:
    artifact = ArtifactStore(api.settings.artifacts).put(model_bytes(model))
    api.fill.version(name, number, artifact, model.preprocessing.signature())


def post(api: Api, path: str, body: Any) -> httpx.Response:
    return api.client.post(f"/v1/models/{path}", json=body)


def error(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    assert (answer.status_code, found["code"]) == (status, code), answer.text
    return found


@pytest.mark.parametrize("kind", list(TARGETS))
def test_predictions_are_cores_own_and_labels_keep_their_type(api: Api, kind: str) -> None:
    model = network_model(kind)
    register(api, kind, 1, model)
    api.store.deploy(kind, 1, "test")
    expected = model.predict(ROWS)
    for path in (f"{kind}/predict", f"{kind}/versions/1/predict"):
        answer = post(api, path, {"instances": ROWS}).json()
        assert answer == {"model": kind, "version": 1, "predictions": expected}
    many = post(api, f"{kind}/predict", {"instances": ROWS * 50}).json()["predictions"]
    assert many == model.predict(ROWS * 50)
    if kind != "values":
        assert {type(row["label"]) for row in many} <= {str} if kind == "texts" else {int, bool}
        assert {row["label"] for row in many} <= set(model.preprocessing.classes or ())


def test_outputs_select(api: Api) -> None:
    register(api, "select", 1, network_model("texts"))
    for outputs in (["label"], ["probabilities"], ["probabilities", "label"]):
        answer = post(api, "select/versions/1/predict", {"instances": ROWS, "outputs": outputs}).json()
        assert {tuple(sorted(row)) for row in answer["predictions"]} == {tuple(sorted(outputs))}
    assert error(post(api, "select/versions/1/predict", {"instances": ROWS, "outputs": ["x"]}), 422, "invalid_request")


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"x": "far", "side": "left"}, "x"),
        ({"x": 1.0}, "side"),
        ({"x": 1.0, "side": "left", "z": 1}, "z"),
        ([1.0], None),
        (5, None),
        ({"x": [1], "side": "left"}, "x"),
        ({"x": 1e400, "side": "left"}, "x"),
        ({"x": 1.0, "side": {"a": 1}}, "side"),
    ],
)
def test_a_row_that_cannot_be_taken_is_named(api: Api, row: Any, column: str | None) -> None:
    register_once(api)
    body = {"instances": [ROWS[0], row]}
    answer = api.client.post("/v1/models/rows/predict", content=json.dumps(body))  # httpx itself writes no infinities
    if answer.status_code == 400:
        assert row["x"] == float("inf")
        return
    found = error(answer, 422, "invalid_instance")
    assert found["row"] == 1
    assert found["param"].startswith("instances[1]")
    if column is not None:
        assert column in found["message"]


def register_once(api: Api) -> None:
    if "rows" not in {model.name for model in api.store.all_models()}:
        register(api, "rows", 1, network_model("texts"))
        api.store.deploy("rows", 1, "test")


@pytest.mark.parametrize(
    "body", [{}, {"instances": []}, {"instances": {}}, [], {"instances": [[1, "a"]], "rows": 1}, {"instances": 5}]
)
def test_a_body_without_rows_is_refused(api: Api, body: Any) -> None:
    register_once(api)
    error(post(api, "rows/predict", body), 422, "invalid_request")


def test_nothing_deployed_says_what_deploys(api: Api) -> None:
    register(api, "idle", 1, network_model("texts"))
    found = error(post(api, "idle/predict", {"instances": ROWS}), 409, "not_deployed")
    assert "POST /v1/models/idle/deploy" in found["message"]
    error(post(api, "none/predict", {"instances": ROWS}), 404, "not_found")
    error(post(api, "idle/versions/2/predict", {"instances": ROWS}), 404, "not_found")


def test_deploy_roll_back_and_history(api: Api) -> None:
    for number in (1, 2):
        register(api, "moves", number, network_model("texts", seed=number))
    register(api, "moves", 3, network_model("values"))
    for number in (1, 2):
        answer = post(api, "moves/deploy", {"version": number}).json()
        assert answer["aliases"] == {"production": number}
        assert post(api, "moves/predict", {"instances": ROWS}).json()["version"] == number
    error(post(api, "moves/deploy", {"version": 3}), 409, "signature_changed")
    assert post(api, "moves/deploy", {"version": 3, "force": True}).status_code == 200
    assert post(api, "moves/rollback", {}).json()["aliases"] == {"production": 2}
    assert api.client.delete("/v1/models/moves/deployment").status_code == 204
    error(post(api, "moves/predict", {"instances": ROWS}), 409, "not_deployed")
    history = api.client.get("/v1/models/moves/deployments").json()["data"]
    assert [(move["action"], move["from"], move["to"]) for move in history] == [
        ("delete", 2, None),
        ("rollback", 3, 2),
        ("deploy", 2, 3),
        ("deploy", 1, 2),
        ("deploy", None, 1),
    ]
    error(post(api, "moves/deploy", {"version": 9}), 404, "not_found")
    assert error(post(api, "moves/deploy", {}), 422, "invalid_spec")["param"] == "version"


def test_a_model_shows_its_versions(api: Api) -> None:
    register(api, "shown", 1, network_model("texts"))
    register(api, "shown", 2, network_model("texts", seed=5))
    post(api, "shown/deploy", {"version": 1})
    found = api.client.get("/v1/models/shown").json()
    assert (found["object"], found["latest_version"], found["aliases"]) == ("model", 2, {"production": 1})
    assert [(version["version"], version["deployed"]) for version in found["versions"]] == [(2, False), (1, True)]
    one = api.client.get("/v1/models/shown/versions/1").json()
    assert (one["aliases"], one["signature"]["inputs"][0]["name"]) == (["production"], "x")
    assert one in found["versions"]
    job = api.client.get(f"/v1/jobs/{one['job_id']}").json()
    assert job["model"] == {"name": "shown", "version": 1, "deployed": True}
    assert "shown" in [model["name"] for model in api.client.get("/v1/models?limit=100").json()["data"]]


def test_a_move_by_another_process_is_followed(api: Api) -> None:
    for number in (1, 2):
        register(api, "elsewhere", number, network_model("texts", seed=number))
    for number in (1, 2, 1):
        api.store.deploy("elsewhere", number, "controller")
        while (answer := post(api, "elsewhere/predict", {"instances": ROWS})).json().get("version") != number:
            assert answer.status_code == 200


def test_swaps_under_load_drop_nothing_and_mix_nothing(api: Api) -> None:
    models = {number: network_model("texts", seed=number) for number in (1, 2)}
    for number, model in models.items():
        register(api, "swap", number, model)
    post(api, "swap/deploy", {"version": 1})
    expected = {number: model.predict(ROWS) for number, model in models.items()}
    swapping = threading.Event()
    swapping.set()
    wrong: list[str] = []
    seen: set[int] = set()

    def ask() -> None:
        with httpx.Client(base_url=api.client.base_url, timeout=60.0) as client:
            while swapping.is_set():
                answer = client.post("/v1/models/swap/predict", json={"instances": ROWS})
                found = answer.json()
                if answer.status_code != 200 or found["predictions"] != expected[found["version"]]:
                    wrong.append(answer.text)
                    return
                seen.add(found["version"])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    rounds = 0
    while rounds < 10 or (len(seen) < 2 and any(thread.is_alive() for thread in threads)):
        rounds += 1
        for number in (2, 1):
            assert post(api, "swap/deploy", {"version": number}).status_code == 200
            assert post(api, "swap/predict", {"instances": ROWS}).json()["version"] == number
    swapping.clear()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert seen == {1, 2}


def test_files_that_are_gone_or_damaged_are_told_of(api: Api) -> None:
    model = network_model("integers", seed=8)
    register(api, "damaged", 1, model)
    artifact = api.settings.artifacts / api.store.get_version("damaged", 1).artifact_sha256
    weights = bytearray((artifact / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (artifact / "weights.safetensors").write_bytes(weights)
    error(post(api, "damaged/versions/1/predict", {"instances": ROWS}), 503, "artifact_missing")
    weights[-1] ^= 1
    (artifact / "weights.safetensors").write_bytes(weights)
    assert post(api, "damaged/versions/1/predict", {"instances": ROWS}).json()["predictions"] == model.predict(ROWS)


def test_more_models_than_are_kept_are_loaded_again(api: Api, store: Store, tmp_path: Path) -> None:
    """`api` only for its artifacts: the predictor under test works on a store of its own."""
    artifacts, models = ArtifactStore(tmp_path / "artifacts"), [network_model("values", seed) for seed in range(5)]
    for number, model in enumerate(models, start=1):
        Fill(store).version("many", number, artifacts.put(model_bytes(model)), model.preprocessing.signature())
    predictor = Predictor(store, tmp_path / "artifacts", kept=2)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for number in draw.integers(0, 5, 30):
            if predictor.predict("many", int(number) + 1, ROWS, None) != (number + 1, models[number].predict(ROWS)):
                wrong.append(int(number))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
