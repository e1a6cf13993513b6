"""What crosses between processes: frozen dataclasses, no behaviour.

The controller sends a `TrainingPlan` to a trainer and reads `TrainerReport`s from it; trainer, workers and aggregator
exchange `ShardReport`s and `StepReport`s.
"""

from dataclasses import dataclass, field
from typing import Any

from core.network import NetworkSpec
from core.optimizers import OptimizerSpec
from core.schedules import ScheduleSpec
from worker.dataset import DataSpec
from worker.sampling import Sampling
from worker.warm_start import Kept


@dataclass(frozen=True)
class EarlyStopping:
    """Stop after `patience` epochs in a row whose validation loss is not below the best by more than `minimum_gain`."""

    patience: int
    minimum_gain: float = 0.0


@dataclass(frozen=True)
class TrainingPlan:
    """One job, completely: nothing else decides its weights.

    `network.inputs` is not known before the data is prepared (one-hot widths depend on the training rows): the trainer
    replaces it by the prepared dataset's width.
    """

    job_id: str
    data: DataSpec
    network: NetworkSpec
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    epochs: int
    batch_size: int  # global: the rows behind one committed step
    shards: int
    seed: int
    threads_per_worker: int = 1
    local_steps: int | None = None  # a round's, at most, that each shard takes between exchanges; None: it takes none
    outer: str = "average"  # with local steps: worker.local_steps.OUTER
    half_gradients: bool = False
    auto_workers: bool = False  # the trainer tries whether one worker is faster than all it was given (worker.probe)
    log_every_steps: int = 1
    early_stopping: EarlyStopping | None = None
    max_seconds: float | None = None
    warm_start: Kept | None = None  # the weights to begin with; None: those of `seed`
    checkpoint_folder: str | None = None  # None: no checkpoints
    checkpoint_every_seconds: float = 30.0
    spec: dict[str, Any] = field(default_factory=dict)  # the resolved job spec: carried into the model file


@dataclass(frozen=True)
class Attached:
    """What a worker says when it takes a job on: the fingerprint of its arithmetic, and where its process is."""

    numerics: str
    machine: str
    pid: int


@dataclass(frozen=True)
class ShardReport:
    """What a worker says of one shard's part of one step. Sums, not means: they are divided once, over all shards."""

    step: int
    shard: int
    rows: int
    weight_sum: float
    loss_sum: float


@dataclass(frozen=True)
class Reduced:
    """What an aggregator says of its blocks of a step: the square sum of each of the summed gradient. Where one is not
    finite, `shards` has the evidence of each shard (worker.reduction.evidence)."""

    squares: tuple[float, ...]
    shards: tuple[tuple[bool, float], ...] = ()


@dataclass(frozen=True)
class StepReport:
    """One committed step: its loss (mean over the step's rows) and the norm of its mean gradient before clipping."""

    step: int
    rows: int
    weight_sum: float
    loss: float
    gradient_norm: float
    learning_rate: float


@dataclass(frozen=True)
class MetricPoint:
    """One point of a series against the committed step. `timestamp`: Unix seconds, taken once, when it was measured."""

    series: str
    step: int
    value: float
    timestamp: float


@dataclass(frozen=True)
class TrainerEvent:
    """Something that people want to read in the job's events. `type`: log, fault or checkpoint."""

    type: str
    level: str
    message: str
    data: dict[str, Any]
    timestamp: float


@dataclass(frozen=True)
class Progress:
    """Where a job stands. `phase`: preparing, training, evaluating. `eta_seconds` is None until it can be told."""

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    examples_per_second: float
    eta_seconds: float | None
    workers: int


@dataclass(frozen=True)
class TrainingResult:
    """A finished training: figures, and the model's files by name (model.json, weights.safetensors)."""

    weights_sha256: str
    model_sha256: str
    numerics: str
    parameters: int
    steps: int
    epochs: int
    worker_failures: int
    best_epoch: int | None
    stopped_early: str | None  # "early_stopping" or "max_seconds"
    metrics: dict[str, float]
    signature: dict[str, Any]
    input_example: list[dict[str, Any]]
    files: dict[str, bytes]


@dataclass(frozen=True)
class TrainingFailure:
    """Why a training ended without a result.

    `code`: diverged, worker_failures, invalid_dataset, invalid_warm_start, out_of_memory, disk_full, internal.
    """

    code: str
    message: str
    details: dict[str, Any]


@dataclass(frozen=True)
class TrainerReport:
    """A trainer's answer to a poll. Points and events are numbered from 1; those up to `acknowledged` are not resent.

    `outcome` is None while it runs, else "succeeded", "failed", "cancelled" or "paused".
    """

    job_id: str
    attempt: int
    progress: Progress
    metrics: dict[str, float]
    first: int  # the number of the first entry of `updates`
    updates: tuple[MetricPoint | TrainerEvent, ...]
    outcome: str | None
    result: TrainingResult | None
    failure: TrainingFailure | None


@dataclass(frozen=True)
class LocalPlan:
    """How each shard takes its local steps (worker.local_steps): `steps` are those of all epochs, for the schedule."""

    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    steps: int


@dataclass(frozen=True)
class StepPlan:
    """What workers and aggregator need to compute a job's steps: the training plan, its data prepared.

    `network` is complete: its inputs are the prepared width. `steps` are those of all epochs, which the schedule spans.
    With `local`, a step is a round of local steps; `optimizer` and `schedule` are then what is done with their outcome.
    """

    folder: str  # of the prepared dataset, where the trainer is
    network: NetworkSpec
    sampling: Sampling
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    steps: int
    threads_per_worker: int
    local: LocalPlan | None = None
    data_sha256: str = ""  # of the prepared dataset: worker.fetched
    half_gradients: bool = False  # each shard's gradient is rounded to float16 before it is added to the others

    @property
    def shards(self) -> int:
        """G, the number of data shards and of gradient slots."""
        return self.sampling.shards
