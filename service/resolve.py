"""A job spec and a dataset's columns -> the resolved spec and the plan: pure, so that submission and dry run agree.

Every `auto` but the number of workers is replaced by what spec and dataset decide, never by the cluster.
"""

import math
from dataclasses import dataclass
from typing import Any

from core.network import NetworkSpec, summary
from core.optimizers import make_optimizer
from service.errors import SpecError
from service.fields import AUTO
from service.resolve_data import ResolvedData, resolve_data
from service.resolve_training import ResolvedTraining, resolve_training
from service.schemas import JobSpec

_FLOAT_BYTES = 4
_OTHER_VECTORS = 3  # two of parameters, one of the best ones

FEW_ROWS = 1000


@dataclass(frozen=True)
class Resolved:
    """The spec with every `auto` replaced, the plan that a dry run answers with, and the model's name, if any."""

    spec: dict[str, Any]
    plan: dict[str, Any]
    model_name: str | None


@dataclass(frozen=True)
class Limits:
    """What the service allows a job."""

    max_parameters: int
    worker_slots: int


def resolve(spec: JobSpec, dataset: dict[str, Any], limits: Limits) -> Resolved:
    """Resolve `spec` against a ready dataset: `id`, `name`, `rows`, `columns` as dataset.json has them.

    Raises SpecError naming the field.
    """
    data = resolve_data(spec, dataset)
    training = resolve_training(spec, data)
    layers = _layers(spec, data, limits)
    _check_workers(spec, limits)
    resolved = _resolved(spec, dataset, data, training)
    plan = {"object": "plan", "spec": resolved} | _plan(data, training, layers)
    return Resolved(resolved, plan, resolved["model"]["name"] if resolved["model"] else None)


def _layers(spec: JobSpec, data: ResolvedData, limits: Limits) -> list[dict[str, Any]]:
    """One row a layer, for networks of any size: nothing is allocated."""
    hidden = tuple(spec.network.hidden)
    layers = summary(NetworkSpec(data.width, data.outputs, hidden, _activation(spec, data), loss=data.loss))
    parameters = sum(layer["parameters"] for layer in layers)
    if parameters > limits.max_parameters:
        raise SpecError("network.hidden", f"{parameters:,} parameters; at most {limits.max_parameters:,} are allowed")
    return layers


def _activation(spec: JobSpec, data: ResolvedData) -> str:
    """Auto: tanh for few rows, whose functions are smooth as far as they can be known (docs/decisions/0004)."""
    if spec.network.activation == AUTO:
        return "tanh" if data.train < FEW_ROWS else "relu"
    return spec.network.activation


def _check_workers(spec: JobSpec, limits: Limits) -> None:
    workers = spec.distribution.workers
    if workers != AUTO and int(workers) > limits.worker_slots:
        message = f"{workers} workers; this service has {limits.worker_slots} worker slots (FALLLINE_WORKER_SLOTS)"
        raise SpecError("distribution.workers", message)


def _resolved(spec: JobSpec, dataset: dict[str, Any], data: ResolvedData, training: ResolvedTraining) -> dict[str, Any]:
    name = spec.name or dataset["name"]
    model = None if spec.model is None else {"name": spec.model.name or name, "deploy": spec.model.deploy}
    resolved = spec.model_dump(exclude={"features"}) | {
        "dataset": dataset["id"],
        "name": name,
        "target": data.targets if isinstance(spec.target, list) else data.targets[0],
        "features": data.features,
        "task": data.task,
        "loss": data.loss,
        "optimizer": training.optimizer.to_json(),
        "schedule": training.schedule,
        "model": model,
        "experiment": spec.experiment or (model["name"] if model else name),
    }
    activation = resolved["network"]["activation"] = _activation(spec, data)
    if spec.network.initializer == AUTO:
        resolved["network"]["initializer"] = "he" if activation == "relu" else "glorot"
    resolved["training"] |= {
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "early_stopping": training.early_stopping,
        "log_every_steps": training.log_every_steps,
    }
    resolved["distribution"]["shards"] = training.shards
    return resolved


def _plan(data: ResolvedData, training: ResolvedTraining, layers: list[dict[str, Any]]) -> dict[str, Any]:
    parameters = sum(layer["parameters"] for layer in layers)
    rows_a_shard = math.ceil(training.batch_size / training.shards)
    values_a_row = data.width + 2 * sum(layer["shape"][1] for layer in layers)  # each layer's values and error signals
    vectors = training.shards + _OTHER_VECTORS + 2 * make_optimizer(training.optimizer).state_vectors
    return {
        "parameters": parameters,
        "layers": layers,
        "steps": training.steps,
        "rows": {"train": data.train, "validation": data.validation, "test": data.test},
        "flops_per_step": training.batch_size * sum(layer["flops"] for layer in layers),
        "memory_bytes": {
            "worker": _FLOAT_BYTES * rows_a_shard * values_a_row,
            "shared": _FLOAT_BYTES * parameters * vectors,
        },
        "useful_workers": training.shards,
    }
