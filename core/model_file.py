"""A trained network as a folder: model.json and weights.safetensors. No pickle, hashes checked before it is used.

This package is shipped inside the model artifact under a name of its own (fallline_core_1), so that MLflow can load the
model where nothing of Fall Line is installed: `_load_pyfunc` is what it calls.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from .errors import ModelFileError, SpecificationError
from .network import Network, NetworkSpec, network_graph, parameter_count, parameter_layout
from .parameters import ParameterLayout, weights_sha256
from .preprocessing import Preprocessing

FORMAT = 1
MODEL, WEIGHTS = "model.json", "weights.safetensors"
_PLANNED_ROWS = 64  # rows predicted at a time: bounds the planned buffers
_LARGEST_JSON = 64 * 2**20
_HASHES = ("weights_sha256", "model_sha256")


@dataclass(frozen=True, eq=False)
class Model:
    """A network, its preprocessing and its parameters, flat (P,); `spec` is the job's. Threads may share it."""

    network: NetworkSpec
    preprocessing: Preprocessing
    parameters: npt.NDArray[Any]
    spec: dict[str, Any]
    dataset_sha256: str
    _planned: Network = field(init=False, repr=False)
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        wanted = (self.preprocessing.width, self.preprocessing.outputs)
        if (self.network.inputs, self.network.outputs) != wanted:
            found = (self.network.inputs, self.network.outputs)
            raise SpecificationError("network", found, f"inputs and outputs {wanted}, which the preprocessing gives")
        if self.parameters.shape != (parameter_count(self.network),):
            raise SpecificationError("parameters", self.parameters.shape, f"({parameter_count(self.network)},)")
        object.__setattr__(self, "_planned", Network(self.network, _PLANNED_ROWS))

    def predict(
        self, instances: Sequence[Mapping[str, Any] | Sequence[Any]], outputs: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """One dict a row, in the dataset's types and units; `outputs` selects among its fields.

        DataError names the row and column that cannot be taken, SpecificationError an unknown output.
        """
        features = self.preprocessing.transform_records(instances).astype(self.network.dtype, copy=False)
        with self._lock:  # the planned buffers are one set
            raw = self._planned.predict(self.parameters, features)
        return self.preprocessing.decode(raw, outputs)

    @property
    def weights_sha256(self) -> str:
        """Of the parameters in the network's order."""
        return weights_sha256(self.parameters)

    @property
    def model_sha256(self) -> str:
        """Of all that decides a prediction, and the job's spec: model.json without its hashes, then the parameters."""
        return _model_sha256(_description(self), self.parameters)

    @property
    def input_example(self) -> list[dict[str, Any]]:
        """One plausible row, made up: no row of the dataset."""
        return [self.preprocessing.features.example()]

    @property
    def layout(self) -> ParameterLayout:
        """Names and shapes of the parameters."""
        return self._planned.layout


def model_bytes(model: Model) -> dict[str, bytes]:
    """The files of a model by name: the same bytes for the same model."""
    hashes = {"weights_sha256": model.weights_sha256, "model_sha256": model.model_sha256}
    tensors = {name: np.ascontiguousarray(view) for name, view in model.layout.views(model.parameters).items()}
    return {
        MODEL: _canonical(_description(model) | hashes),
        WEIGHTS: safetensors.numpy.save(tensors, metadata={"weights_sha256": hashes["weights_sha256"]}),
    }


def save_model(folder: str | Path, model: Model) -> None:
    """Write the files of `model` into `folder`, made if absent; they are on the disk when this returns."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in model_bytes(model).items():
        temporary = folder / f".{name}.part"
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / name)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_model(folder: str | Path) -> Model:
    """The model in `folder`. ModelFileError where a file is absent, damaged, of another format, or not what it says."""
    folder = Path(folder)
    description = _read_description(folder / MODEL)
    hashes = {name: description.pop(name, None) for name in _HASHES}
    try:
        network = NetworkSpec.from_json(description["network"])
        preprocessing = Preprocessing.from_json(description["preprocessing"])
        spec, dataset_sha256 = dict(description["spec"]), str(description["dataset_sha256"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(MODEL, f"not a model description ({error!r})") from error
    except SpecificationError as error:
        raise ModelFileError(MODEL, str(error)) from error
    parameters = _read_weights(folder / WEIGHTS, network)
    if weights_sha256(parameters) != hashes["weights_sha256"]:
        raise ModelFileError(WEIGHTS, "damaged: its hash is not the one in model.json")
    if _model_sha256(description, parameters) != hashes["model_sha256"]:
        raise ModelFileError(MODEL, "damaged: its hash is not the one that it holds")
    try:
        return Model(network, preprocessing, parameters, spec, dataset_sha256)
    except SpecificationError as error:
        raise ModelFileError(MODEL, str(error)) from error


def _description(model: Model) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "network": model.network.to_json(),
        "preprocessing": model.preprocessing.to_json(),
        "classes": None if model.preprocessing.classes is None else list(model.preprocessing.classes),
        "spec": model.spec,
        "dataset_sha256": model.dataset_sha256,
    }


def _canonical(data: dict[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _model_sha256(description: dict[str, Any], parameters: npt.NDArray[Any]) -> str:
    digest = hashlib.sha256(_canonical(description))
    digest.update(np.ascontiguousarray(parameters, parameters.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def _read_description(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ModelFileError(MODEL, f"larger than {_LARGEST_JSON} bytes")
        description = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelFileError(MODEL, f"not in {path.parent}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(MODEL, f"unreadable ({error})") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ModelFileError(MODEL, f"not a model of format {FORMAT}")
    return description


def _read_weights(path: Path, network: NetworkSpec) -> npt.NDArray[Any]:
    """The flat parameters (P,). Nothing is allocated before the file's size, names, shapes and types are right."""
    dtype = np.dtype(network.dtype)
    expected = parameter_count(network) * dtype.itemsize
    try:
        size = path.stat().st_size
        if not expected < size < expected + _LARGEST_JSON:
            raise ModelFileError(WEIGHTS, f"{size} bytes; the network's parameters take {expected}")
        layout = parameter_layout(network_graph(network))
        parameters = np.empty(layout.size, dtype=dtype)
        views = layout.views(parameters)
        with safetensors.safe_open(path, framework="numpy") as file:
            if set(file.keys()) != set(layout.names):
                raise ModelFileError(WEIGHTS, f"holds {sorted(file.keys())}, not {sorted(layout.names)}")
            for name, view in views.items():
                stored = file.get_slice(name)
                if tuple(stored.get_shape()) != view.shape:
                    raise ModelFileError(WEIGHTS, f"{name} has shape {stored.get_shape()}, not {list(view.shape)}")
                tensor = file.get_tensor(name)
                if tensor.dtype != dtype:
                    raise ModelFileError(WEIGHTS, f"{name} holds {tensor.dtype}, not {dtype}")
                view[...] = tensor
    except FileNotFoundError as error:
        raise ModelFileError(WEIGHTS, f"not in {path.parent}") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelFileError(WEIGHTS, f"unreadable ({error})") from error
    parameters.flags.writeable = False
    return parameters


class PyfuncModel:
    """What `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """A data frame, a 2-D array, a list of rows, one row, or columns by name -> as `Model.predict`."""
        return self.model.predict(_instances(model_input), (params or {}).get("outputs"))


def _load_pyfunc(data_path: str) -> PyfuncModel:
    """MLflow's entry: `data_path` is the folder of model.json, or a file in it."""
    path = Path(data_path)
    return PyfuncModel(load_model(path if path.is_dir() else path.parent))


def _instances(model_input: Any) -> list[Any]:
    """Rows, from whatever MLflow passes on. A data frame is known by what it can do: pandas is not imported here."""
    if hasattr(model_input, "columns") and hasattr(model_input, "to_numpy"):
        rows = model_input.to_numpy(dtype=object, na_value=None).tolist()
        return _named(list(model_input.columns), rows)
    if isinstance(model_input, Mapping):
        if any(isinstance(value, list | tuple | np.ndarray) for value in model_input.values()):
            columns = [np.asarray(value, dtype=object).tolist() for value in model_input.values()]
            return _named(list(model_input), zip(*columns, strict=True))
        return [model_input]
    if isinstance(model_input, np.ndarray):
        rows = model_input.tolist()
        return rows if model_input.ndim > 1 else [rows]
    return list(model_input)


def _named(names: list[Any], rows: Iterable[Sequence[Any]]) -> list[dict[Any, Any]]:
    return [dict(zip(names, row, strict=True)) for row in rows]
