import hashlib
import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import core
from core.columns import number_column, text_column
from core.errors import DataError, ModelFileError, SpecificationError
from core.model_file import MODEL, WEIGHTS, Model, _load_pyfunc, load_model, model_bytes, save_model
from core.network import Network, NetworkSpec, initial_parameters
from core.preprocessing import Preprocessing, PreprocessingSpec

ROWS = [
    {"age": 31.0, "city": "Ulm"},
    {"age": None, "city": "Köln"},
    {"age": 40.25, "city": None},
    {"age": 22.0, "city": "Rom"},
]


def make(task: str = "classification", dtype: str = "float32") -> Model:
    columns = {
        "age": number_column("age", [31.0, 22.0, 40.0, None]),
        "city": text_column("city", ["Ulm", "Köln", "Ulm", None]),
        "risk": text_column("risk", ["low", "high", "low", "none"]),
        "a": number_column("a", [1.0, 2.0, 3.0, 4.0]),
        "b": number_column("b", [10.0, 20.0, 30.0, 45.0]),
    }
    targets = ("risk",) if task == "classification" else ("a", "b")
    preprocessing = Preprocessing.fit(PreprocessingSpec(("age", "city"), targets, task), columns, np.arange(4))
    loss = "cross_entropy" if task == "classification" else "squared_error"
    network = NetworkSpec(preprocessing.width, preprocessing.outputs, (5, 4), "tanh", loss=loss, dtype=dtype)
    spec = {"target": list(targets), "training": {"epochs": 3}, "name": "Größe"}
    return Model(network, preprocessing, initial_parameters(network, 7), spec, "d" * 64)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_saved_model_loads_as_the_same_model(tmp_path: Path, task: str, dtype: str) -> None:
    model = make(task, dtype)
    save_model(tmp_path / "new" / "model", model)
    again = load_model(tmp_path / "new" / "model")
    assert sorted(path.name for path in (tmp_path / "new" / "model").iterdir()) == [MODEL, WEIGHTS]
    assert again.parameters.tobytes() == model.parameters.tobytes()
    assert again.parameters.dtype == model.parameters.dtype
    assert (again.network, again.spec, again.dataset_sha256) == (model.network, model.spec, model.dataset_sha256)
    assert again.weights_sha256 == model.weights_sha256
    assert again.model_sha256 == model.model_sha256
    assert model_bytes(again) == model_bytes(model)
    assert again.predict(ROWS) == model.predict(ROWS)
    assert again.input_example == model.input_example


NOTATIONS = [
    {"hidden": (5,), "loss": "binary_cross_entropy", "activation": {"name": "leaky_relu", "negative_slope": 0.2}},
    {"layers": ({"units": 5, "activation": "gelu", "dropout": 0.5}, {"units": 4, "layer_norm": True})},
    {
        "graph": (
            {"name": "a", "inputs": ("features",), "units": 5},
            {"name": "b", "inputs": ("a",), "units": 5},
            {"name": "c", "inputs": ("a", "b"), "operation": "sum"},
        )
    },
]


@pytest.mark.parametrize("notation", NOTATIONS, ids=["binary", "layers", "graph"])
def test_every_notation_of_a_network_is_kept(tmp_path: Path, notation: dict[str, Any]) -> None:
    small = make()
    columns = {"age": number_column("age", [31.0, 22.0, 40.0, None]), "yes": number_column("yes", [1, 0, 1, 0])}
    fitted = Preprocessing.fit(PreprocessingSpec(("age",), ("yes",), "classification"), columns, np.arange(4))
    network = NetworkSpec(1, 2, **notation)
    model = Model(network, fitted, initial_parameters(network, 7), small.spec, "d" * 64)
    save_model(tmp_path, model)
    again = load_model(tmp_path)
    assert again.network == network
    assert again.model_sha256 == model.model_sha256
    answers = again.predict([{"age": 30.0}, {"age": None}])
    assert answers == model.predict([{"age": 30.0}, {"age": None}])
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1.0, abs=1e-6) for answer in answers)


def test_the_hash_of_the_stored_tensors_in_the_networks_order_is_weights_sha256(tmp_path: Path) -> None:
    model = make()
    save_model(tmp_path, model)
    tensors = safetensors.numpy.load_file(tmp_path / WEIGHTS)
    order = Network(model.network, 1).layout.names
    assert set(tensors) == set(order)
    content = b"".join(tensors[name].astype("<f4").tobytes() for name in order)
    description = json.loads((tmp_path / MODEL).read_bytes())
    assert hashlib.sha256(content).hexdigest() == description["weights_sha256"] == model.weights_sha256
    del description["weights_sha256"], description["model_sha256"]
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert hashlib.sha256(canonical + content).hexdigest() == model.model_sha256


def test_what_decides_the_hashes() -> None:
    model = make()
    other = Model(model.network, model.preprocessing, initial_parameters(model.network, 8), model.spec, "d" * 64)
    assert other.weights_sha256 != model.weights_sha256
    assert other.model_sha256 != model.model_sha256
    elsewhere = Model(model.network, model.preprocessing, model.parameters, model.spec, "e" * 64)
    assert elsewhere.weights_sha256 == model.weights_sha256
    assert elsewhere.model_sha256 != model.model_sha256


def test_predictions_are_the_networks_in_words() -> None:
    model = make()
    features = model.preprocessing.transform_records(ROWS)
    raw = Network(model.network, 4).predict(model.parameters, features)
    answers = model.predict(ROWS)
    assert [row["label"] for row in answers] == [model.preprocessing.classes[k] for k in raw.argmax(axis=1)]
    np.testing.assert_array_equal([list(row["probabilities"].values()) for row in answers], raw)
    assert model.predict(ROWS, ["label"]) == [{"label": row["label"]} for row in answers]
    assert model.predict([]) == []
    regression = make("regression")
    raw = Network(regression.network, 4).predict(regression.parameters, features)
    expected = raw * regression.preprocessing.target_scales + regression.preprocessing.target_means
    np.testing.assert_allclose([list(row["values"].values()) for row in regression.predict(ROWS)], expected)


def test_errors_of_a_prediction() -> None:
    with pytest.raises(DataError, match="row 1, column 'age': got 'old'"):
        make().predict([ROWS[0], ROWS[0] | {"age": "old"}])
    with pytest.raises(SpecificationError, match="outputs"):
        make().predict(ROWS, ["value"])


def test_threads_may_share_a_model() -> None:
    small = make()
    network = replace(small.network, hidden=(300, 300))  # so wide that NumPy lets another thread in meanwhile
    model = Model(network, small.preprocessing, initial_parameters(network, 1), {}, "")
    batches = [[{"age": float(20 + k), "city": "Ulm"}] * 40 for k in range(4)]
    expected = [model.predict(batch) for batch in batches]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(50):
            if model.predict(batches[k]) != expected[k]:
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_parts_that_do_not_fit_are_refused() -> None:
    model = make()
    wide = NetworkSpec(9, 3, ())
    with pytest.raises(SpecificationError, match="network"):
        Model(wide, model.preprocessing, initial_parameters(wide, 0), {}, "")
    with pytest.raises(SpecificationError, match="parameters"):
        Model(model.network, model.preprocessing, model.parameters[:-1], {}, "")


def _edit(folder: Path, **changes: object) -> None:
    description = json.loads((folder / MODEL).read_bytes())
    (folder / MODEL).write_text(json.dumps(description | changes))


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def _restore(folder: Path, change) -> None:  # type: ignore[no-untyped-def]
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    safetensors.numpy.save_file(change(tensors), folder / WEIGHTS)


# name -> (what is done to the folder, words of the refusal)
DAMAGE = {
    "no model.json": (lambda folder: (folder / MODEL).unlink(), "model.json: not in"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "weights.safetensors: not in"),
    "no JSON": (lambda folder: (folder / MODEL).write_bytes(b"{"), "model.json: unreadable"),
    "not UTF-8": (lambda folder: (folder / MODEL).write_bytes(b'{"format": "\xff"}'), "model.json: unreadable"),
    "deep JSON": (lambda folder: (folder / MODEL).write_bytes(b"[" * 100_000), "model.json: unreadable"),
    "a list": (lambda folder: (folder / MODEL).write_bytes(b"[]"), "not a model of format 1"),
    "another format": (lambda folder: _edit(folder, format=2), "not a model of format 1"),
    "another spec": (lambda folder: _edit(folder, spec={"changed": 1}), "model.json: damaged"),
    "spec is no object": (lambda folder: _edit(folder, spec=5), "not a model description"),
    "network is no object": (lambda folder: _edit(folder, network=[]), "not a model description"),
    "network of 10**12 weights": (
        lambda folder: _edit(folder, network=NetworkSpec(10**6, 3, (10**6,)).to_json()),
        "the network's parameters take 4000016000012",
    ),
    "another network": (
        lambda folder: _edit(folder, network=make().network.to_json() | {"activation": "relu"}),
        "model.json: damaged",
    ),
    "another preprocessing": (lambda folder: _edit(folder, preprocessing={}), "the field is missing"),
    "a flipped weight": (lambda folder: _flip(folder / WEIGHTS, -1), "weights.safetensors: damaged"),
    "a flipped header": (lambda folder: _flip(folder / WEIGHTS, 0), "weights.safetensors: unreadable"),
    "weights cut off": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4]),
        "weights.safetensors: unreadable",
    ),
    "weights empty": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "0 bytes"),
    "a tensor renamed": (lambda folder: _restore(folder, lambda t: {n + "x": v for n, v in t.items()}), "holds ["),
    "tensors of another type": (
        lambda folder: _restore(folder, lambda t: {n: v.view(np.int32) for n, v in t.items()}),
        "holds int32, not float32",
    ),
    "tensors of another shape": (
        lambda folder: _restore(folder, lambda t: {n: v.ravel() for n, v in t.items()}),
        "has shape",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: str) -> None:
    save_model(tmp_path, make())
    spoil, words = DAMAGE[damage]
    spoil(tmp_path)
    with pytest.raises(ModelFileError) as caught:
        load_model(tmp_path)
    assert words in str(caught.value)


def test_saving_again_replaces_what_was_there(tmp_path: Path) -> None:
    save_model(tmp_path, make("regression"))
    save_model(tmp_path, make())
    assert load_model(tmp_path).model_sha256 == make().model_sha256


class Frame:
    """As much of a data frame as the loader needs; the real one is tried below."""

    def __init__(self, rows: list[dict]) -> None:
        self.columns = list(rows[0])
        self.rows = rows

    def to_numpy(self, dtype: type, na_value: object) -> np.ndarray:
        return np.array([[row[name] for name in self.columns] for row in self.rows], dtype=dtype)


def test_every_form_of_input_that_mlflow_passes_on(tmp_path: Path) -> None:
    import pandas

    model = make()
    save_model(tmp_path, model)
    loaded = _load_pyfunc(str(tmp_path))
    expected = model.predict(ROWS)
    reordered = [{"city": row["city"], "age": row["age"]} for row in ROWS]
    frame = pandas.DataFrame(reordered)
    assert frame["age"].isna().any()
    for given in (ROWS, Frame(reordered), frame, frame.convert_dtypes()):
        assert loaded.predict(given) == expected
    first = model.predict(ROWS[:1])  # one row alone goes through another BLAS kernel: not the same last bits
    assert loaded.predict({"city": np.array(["Ulm"]), "age": np.array([31.0])}) == first
    assert loaded.predict({"city": "Ulm", "age": 31.0}) == first
    assert loaded.predict(np.array([[31.0, "Ulm"]], dtype=object)) == first
    assert loaded.predict(frame, {"outputs": ["label"]}) == [{"label": row["label"]} for row in expected]
    assert _load_pyfunc(str(tmp_path / MODEL)).predict(ROWS) == expected


SCRIPT = """
import json, sys
before = set(sys.modules)
from fallline_core_1.model_file import _load_pyfunc
loaded = _load_pyfunc(sys.argv[1])
answers = loaded.predict(json.loads(sys.argv[2]))
roots = {name.partition(".")[0] for name in set(sys.modules) - before}
numpys = {"numpy", "cython_runtime", *(name for name in roots if name.startswith("_cython_"))}
foreign = roots - set(sys.stdlib_module_names) - numpys - {"safetensors", "fallline_core_1"}
print(json.dumps({"answers": answers, "foreign": sorted(foreign), "core": "core" in sys.modules}))
"""


def test_a_copy_of_the_package_under_another_name_serves_the_model(tmp_path: Path) -> None:
    model = make()
    save_model(tmp_path / "model", model)
    copy = tmp_path / "code" / "fallline_core_1"
    shutil.copytree(Path(core.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "model"), json.dumps(ROWS)]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "code")}
    )
    said = json.loads(ended.stdout)
    assert said["answers"] == model.predict(ROWS)
    assert (said["foreign"], said["core"]) == ([], False)
