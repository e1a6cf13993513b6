"""A job spec and a dataset's columns -> the resolved spec and the plan: pure, so that submission and dry run agree.

Every `auto` but the number of workers is replaced by what spec and dataset decide, never by the cluster.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from core.columns import Value
from core.optimizers import make_optimizer
from service.errors import SpecError
from service.fields import AUTO
from service.resolve_data import ResolvedData, resolve_data
from service.resolve_network import ResolvedNetwork, resolve_network
from service.resolve_training import ResolvedTraining, resolve_training
from service.resolve_warm_start import Source, adopt, adopt_data, check_network
from service.schemas import JobSpec, WorkerRange

_OTHER_VECTORS = 3  # two of parameters, one of the best ones


@dataclass(frozen=True)
class Resolved:
    """The spec with every `auto` replaced, the plan that a dry run answers with, and the model's name, if any."""

    spec: dict[str, Any]
    plan: dict[str, Any]
    model_name: str | None


@dataclass(frozen=True)
class Limits:
    """What the service allows a job. `memory_bytes`: of the machine that trains; None: it is another one."""

    max_parameters: int
    worker_slots: int
    memory_bytes: int | None = None


def resolve(
    spec: JobSpec,
    dataset: dict[str, Any],
    limits: Limits,
    source: Source | None = None,
    classes: Sequence[Value] = (),
) -> Resolved:
    """Resolve `spec` against a ready dataset: `id`, `name`, `rows`, `columns` as dataset.json has them.

    `source` is what `training.warm_start` names; `classes` are then the values of the target. Raises SpecError naming
    the field.
    """
    stated = spec.network
    spec = spec if source is None else adopt(spec, source, dataset, classes)
    data = resolve_data(spec, dataset)
    data = data if source is None else adopt_data(data, source)
    training = resolve_training(spec, data)
    network = resolve_network(spec, data, limits.max_parameters)
    if source is not None:
        check_network(stated, network.spec, source)
    workers = spec.distribution.workers
    if isinstance(workers, WorkerRange):
        check_workers("distribution.workers.max", workers.max, limits)
    elif workers != AUTO:
        check_workers("distribution.workers", int(workers), limits)
    resolved = _resolved(spec, dataset, data, training, network)
    plan = {"object": "plan", "spec": resolved} | _plan(data, training, network)
    if source is not None:
        resolved["training"]["warm_start"] = source.section
        plan["warm_start"] = source.hashes
    _check_memory(plan, training, network, limits)
    return Resolved(resolved, plan, resolved["model"]["name"] if resolved["model"] else None)


def check_workers(field: str, workers: int, limits: Limits) -> None:
    """Raises SpecError where `field` asks for more workers than there can be."""
    if workers > limits.worker_slots:
        message = f"{workers} workers; this service has {limits.worker_slots} worker slots (FALLLINE_WORKER_SLOTS)"
        raise SpecError(field, message)


def _check_memory(plan: dict[str, Any], training: ResolvedTraining, network: ResolvedNetwork, limits: Limits) -> None:
    """Refuse a job whose segment, with one worker's buffers, the machine cannot hold."""
    need, has = sum(plan["memory_bytes"].values()), limits.memory_bytes
    if has is None or need <= has:
        return
    fits_one_shard = need - (training.shards - 1) * _vector_bytes(network) <= has
    field, advice = ("distribution.shards", "fewer shards") if fits_one_shard else ("network", "a smaller network")
    job = f"{network.parameters:,} parameters in {training.shards} shards take {need / 2**30:,.2f} GiB of memory"
    raise SpecError(field, f"{job}; this machine has {has / 2**30:,.2f} GiB: ask for {advice}")


def _vector_bytes(network: ResolvedNetwork) -> int:
    return np.dtype(network.spec.dtype).itemsize * network.parameters


def _resolved(
    spec: JobSpec, dataset: dict[str, Any], data: ResolvedData, training: ResolvedTraining, network: ResolvedNetwork
) -> dict[str, Any]:
    name = spec.name or dataset["name"]
    model = None if spec.model is None else {"name": spec.model.name or name, "deploy": spec.model.deploy}
    resolved = spec.model_dump(exclude={"features"}) | {
        "dataset": dataset["id"],
        "name": name,
        "target": data.targets if isinstance(spec.target, list) else data.targets[0],
        "features": data.features,
        "task": data.task,
        "network": network.section,
        "loss": data.loss,
        "optimizer": asdict(training.optimizer) | {"reference_batch_size": None},  # the learning rate has it in it
        "schedule": training.schedule,
        "model": model,
        "experiment": spec.experiment or (model["name"] if model else name),
    }
    resolved["training"] |= {
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "early_stopping": training.early_stopping,
        "log_every_steps": training.log_every_steps,
        "class_weight": data.class_weight,
    }
    resolved["distribution"]["shards"] = training.shards
    return resolved


def _plan(data: ResolvedData, training: ResolvedTraining, network: ResolvedNetwork) -> dict[str, Any]:
    vectors = training.shards + _OTHER_VECTORS + 2 * make_optimizer(training.exchanged).state_vectors
    rows = math.ceil(training.batch_size / training.shards)
    return {
        "parameters": network.parameters,
        "layers": network.layers,
        "steps": training.steps,
        "rows": {"train": data.train, "validation": data.validation, "test": data.test},
        "flops_per_step": training.minibatches * training.batch_size * network.flops,
        "memory_bytes": {
            "worker": network.worker_bytes(rows) + training.own_vectors * _vector_bytes(network),
            "shared": _vector_bytes(network) * vectors,
        },
        "useful_workers": training.shards,
    }
