"""What is said to MLflow, in words of our own: no import of MLflow here, so that every process can have it."""

import importlib.metadata
import importlib.util
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import ServiceError

JOB_TAG = "fallline.job_id"
START_TAG = "fallline.warm_start"
PRODUCTION = "production"
MLFLOW_NAME = re.compile(r"\w[\w .:-]{0,63}")  # of a parameter or a tag
CODE_PACKAGE = "fallline_core_1"  # the engine inside a model artifact: `core` under a name that collides with nobody's


class TrackingError(ServiceError):
    """MLflow could not do `action`, for `reason`."""

    def __init__(self, action: str, reason: str) -> None:
        super().__init__(action, reason)
        self.action, self.reason = action, reason

    def __str__(self) -> str:
        return f"MLflow, {self.action}: {self.reason}"


class TrackingDown(TrackingError):
    """MLflow did not answer, or not sensibly: try again later."""


class TrackingRefused(TrackingError):
    """MLflow answered, and refused: trying again will not help until somebody has looked."""


@dataclass(frozen=True)
class TrackedDataset:
    """The dataset as MLflow shows it; `source`, `schema` and `profile` are JSON texts."""

    name: str
    sha256: str
    source: str
    schema: str | None
    profile: str | None


@dataclass(frozen=True)
class RunDescription:
    """What a job's run holds from its start. Times are Unix seconds."""

    job_id: str
    name: str
    experiment: str
    started_at: float
    parameters: Mapping[str, Any]  # the resolved spec, nested
    tags: Mapping[str, str]
    dataset: TrackedDataset


@dataclass(frozen=True)
class RunReference:
    """Where a job's run is."""

    run_id: str
    experiment_id: str


@dataclass(frozen=True)
class TrackedPoint:
    """A metric point; `value` None stands for one that was not finite."""

    series: str
    step: int
    value: float | None
    timestamp: float


@dataclass(frozen=True)
class Registration:
    """A version to be: the files of `artifact` under the registered model `name`, for the job's committed `step`."""

    job_id: str
    name: str
    artifact: Path
    step: int
    signature: Mapping[str, Any]
    input_example: list[dict[str, Any]]
    metadata: Mapping[str, Any]
    tags: Mapping[str, str]


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"network": {"hidden": [8]}}` -> `{"network.hidden": "[8]"}`: texts as they are, all else as JSON.

    So is a mapping by names of the user's that MLflow takes for none, such as the labels of class weights.
    """
    flat: dict[str, str] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and all(MLFLOW_NAME.fullmatch(inner) for inner in value):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def code_package(folder: Path) -> Path:
    """A copy of `core` below `folder`, as the package that travels in a model artifact."""
    spec = importlib.util.find_spec("core")
    assert spec is not None
    assert spec.origin is not None
    target = folder / CODE_PACKAGE
    shutil.copytree(Path(spec.origin).parent, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    return target


def requirements() -> list[str]:
    """What the code of a model artifact needs, pinned to what it was trained with."""
    return [f"{name}=={importlib.metadata.version(name)}" for name in ("numpy", "safetensors")]
