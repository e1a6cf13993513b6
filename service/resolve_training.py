"""How a job spec is trained on the rows it has: batch size, epochs, shards, optimizer, schedule. Pure.

Every `auto` is decided by spec and dataset, never by the cluster; every refusal is a SpecError that names the field.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from core.optimizers import OptimizerSpec
from core.schedules import ScheduleSpec, scaled_rate
from service.errors import SpecError
from service.fields import AUTO
from service.resolve_data import ResolvedData
from service.schemas import EarlyStopping, JobSpec
from worker.local_steps import OUTER, vectors

LEARNING_RATES = {"adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3, "adagrad": 1e-2, "sgd": 0.1}
MOMENTUM_LEARNING_RATE = 0.02
SCHEDULE_NUMBERS = {"step": ("factor", "every"), "exponential": ("factor",), "inverse": ("factor",)}
BATCH_SIZES = (32, 64, 128, 256)
# A smaller validation split is too noisy to choose an epoch by: on iris it costs 4 points of accuracy.
LEAST_VALIDATION_ROWS = 50
STEPS_WANTED, ROWS_A_BATCH, SHARD_ROWS, POINTS_WANTED = 2000, 50, 64, 1000


@dataclass(frozen=True)
class ResolvedTraining:
    """`steps` in all, cut into `shards`, each of `minibatches` (the last of an epoch: fewer) of `batch_size` rows.

    `exchanged`: the optimizer that is applied to what shards exchange; `optimizer` itself, but with local steps.
    `own_vectors`: of the parameters' length, that each worker keeps for local steps.
    """

    batch_size: int
    epochs: int
    steps: int
    minibatches: int
    shards: int
    log_every_steps: int
    early_stopping: dict[str, Any] | None
    optimizer: OptimizerSpec
    exchanged: OptimizerSpec
    own_vectors: int
    schedule: dict[str, Any]


def resolve_training(spec: JobSpec, data: ResolvedData) -> ResolvedTraining:
    """For a network of any size."""
    batch_size = _batch_size(spec, data)
    _check_local_steps(spec)
    is_local, per_epoch = spec.distribution.mode == "local", math.ceil(data.train / batch_size)
    epochs, minibatches = _epochs(spec, per_epoch), min(spec.distribution.local_steps, per_epoch)
    steps = epochs * math.ceil(per_epoch / minibatches)
    wanted, optimizer = spec.training.log_every_steps, _optimizer(spec, batch_size)
    return ResolvedTraining(
        batch_size=batch_size,
        epochs=epochs,
        steps=steps,
        minibatches=minibatches,
        shards=_shards(spec, batch_size),
        log_every_steps=math.ceil(steps / POINTS_WANTED) if wanted == AUTO else int(wanted),
        early_stopping=_early_stopping(spec, epochs, data.validation),
        optimizer=optimizer,
        exchanged=OUTER[spec.distribution.outer] if is_local else optimizer,
        own_vectors=vectors(optimizer) if is_local else 0,
        schedule=_schedule(spec),
    )


def _check_local_steps(spec: JobSpec) -> None:
    given = spec.distribution
    if given.mode == "sync":
        for field, default in (("local_steps", 1), ("outer", "average")):
            value = getattr(given, field)
            if value != default:
                message = f"{value} is for mode local; mode sync exchanges every step: {default}, or set mode: local"
                raise SpecError(f"distribution.{field}", message)


def _shards(spec: JobSpec, batch_size: int) -> int:
    if spec.distribution.shards == AUTO:
        return max(1, min(batch_size // SHARD_ROWS, 8))
    shards = int(spec.distribution.shards)
    if shards > batch_size:
        raise SpecError("distribution.shards", f"{shards} shards cannot share a batch of {batch_size} rows")
    return shards


def _batch_size(spec: JobSpec, data: ResolvedData) -> int:
    if spec.training.batch_size == AUTO:
        nearest = min(BATCH_SIZES, key=lambda size: abs(size - data.rows / ROWS_A_BATCH))
        return min(nearest, data.train)
    wanted = int(spec.training.batch_size)
    if wanted > data.train:
        message = f"{wanted} rows a step, but only {data.train} train (the rest is validation and test)"
        raise SpecError("training.batch_size", message)
    return wanted


def _epochs(spec: JobSpec, minibatches: int) -> int:
    if spec.training.epochs == AUTO:
        return max(20, min(200, math.ceil(STEPS_WANTED / minibatches)))
    return int(spec.training.epochs)


def _early_stopping(spec: JobSpec, epochs: int, validation: int) -> dict[str, Any] | None:
    wanted = spec.training.early_stopping
    if isinstance(wanted, EarlyStopping):
        if validation == 0:
            raise SpecError("training.early_stopping", "needs validation rows: set split.validation above 0")
        return {"patience": wanted.patience}
    enough = validation >= LEAST_VALIDATION_ROWS
    return {"patience": max(10, epochs // 5)} if wanted == AUTO and enough else None


def _optimizer(spec: JobSpec, batch_size: int) -> OptimizerSpec:
    given = spec.optimizer
    name = "adamw" if given.name == AUTO else given.name
    rate = MOMENTUM_LEARNING_RATE if name == "sgd" and given.momentum else LEARNING_RATES[name]
    if given.momentum and name != "sgd":
        raise SpecError("optimizer.momentum", f"{name} takes no momentum; it is sgd's")
    if given.nesterov and not given.momentum:
        raise SpecError("optimizer.nesterov", "needs a momentum above 0")
    found = OptimizerSpec(
        name=name,
        learning_rate=_scaled(given.learning_rate or rate, batch_size, given.reference_batch_size),
        momentum=given.momentum,
        nesterov=given.nesterov,
        weight_decay=(0.01 if name == "adamw" else 0.0) if given.weight_decay is None else given.weight_decay,
        beta1=given.beta1,
        beta2=given.beta2,
        epsilon=given.epsilon,
        clip_norm=given.clip_norm,
        l1=given.l1,
        max_norm=given.max_norm,
    )
    unset = "clip_norm" not in given.model_fields_set
    return replace(found, clip_norm=1.0) if given.name == AUTO and unset else found


def _scaled(rate: float, batch_size: int, reference: int | None) -> float:
    """The learning rate of batches of `batch_size` rows, where `rate` suits those of `reference`."""
    found = rate if reference is None else scaled_rate(rate, batch_size, reference)
    if not 0.0 < found < math.inf:
        message = f"{rate:g} for {reference} rows is {found:g} for {batch_size}; expected a finite number above 0"
        raise SpecError("optimizer.learning_rate", message)
    return found


def _schedule(spec: JobSpec) -> dict[str, Any]:
    given = spec.schedule
    name = given.name
    if name == AUTO:
        name = "cosine"
        given = given if "warmup" in given.model_fields_set else given.model_copy(update={"warmup": 0.05})
    found = {"name": name, "warmup": given.warmup}
    for field, default in (("factor", ScheduleSpec.factor), ("every", ScheduleSpec.every)):
        value = getattr(given, field)
        if field in SCHEDULE_NUMBERS.get(name, ()):
            found[field] = default if value is None else value
        elif value is not None:
            takers = ", ".join(taker for taker, numbers in SCHEDULE_NUMBERS.items() if field in numbers)
            raise SpecError(f"schedule.{field}", f"{name} takes none, got {value:g}; it is for {takers}")
    return found
