"""The job spec, field by field, as docs/spec.md and the contract have it. Strict: what is unknown is refused."""

from typing import Annotated, Any, Self

from pydantic import Field, PlainValidator, ValidationError, WithJsonSchema, field_validator, model_validator

from core.losses import LOSSES
from core.optimizers import LEAST_EPSILON
from core.schedules import SCHEDULES
from service.fields import (
    AUTO,
    Section,
    Seed,
    as_whole,
    choice,
    flag,
    identifier,
    kind,
    number,
    only,
    text,
    weights_by_label,
    whole,
    wrong,
)
from service.schemas_network import Network
from service.tracked import MLFLOW_NAME, PRODUCTION
from worker.local_steps import OUTER

MOST_WORKERS = 100_000
WARM_STARTS = (
    "null, {job: job_...}, {job: job_..., step: 400}, {model: digits}, {model: digits, version: 3} or "
    "{model: digits, alias: production}"
)


def _named(value: Any) -> Any:
    """A section that may be given by its name alone."""
    return {"name": value} if isinstance(value, str) else value


class Split(Section):
    """How the rows are shared out."""

    validation: Annotated[float, *number(0.0, below=1.0)] = 0.2
    test: Annotated[float, *number(0.0, below=1.0)] = 0.0
    by: Annotated[str, *choice("random", "stratified", "time", later=("group",))] = "random"
    column: Annotated[str | None, *text(null=True)] = None
    seed: Seed = 0


class Preprocessing(Section):
    """How columns become numbers."""

    numeric: Annotated[str, *choice("standardize", "none")] = "standardize"
    missing: Annotated[str, *choice("mean", "error")] = "mean"
    categorical: Annotated[str, *choice("one_hot")] = "one_hot"
    unseen: Annotated[str, *choice("ignore", "error")] = "ignore"


class Optimizer(Section):
    """An optimizer with its numbers; a number that is absent has the default of the optimizer named."""

    name: Annotated[str, *choice(AUTO, "sgd", "adam", "adamw", "rmsprop", "adagrad")] = AUTO
    learning_rate: Annotated[float | None, *number(0.0, above=True, null=True)] = None
    momentum: Annotated[float, *number(0.0, below=1.0)] = 0.0
    nesterov: Annotated[bool, *flag()] = False
    weight_decay: Annotated[float | None, *number(0.0, null=True)] = None
    beta1: Annotated[float, *number(0.0, below=1.0)] = 0.9
    beta2: Annotated[float, *number(0.0, below=1.0)] = 0.999
    epsilon: Annotated[float, *number(LEAST_EPSILON)] = 1e-8
    clip_norm: Annotated[float | None, *number(0.0, above=True, null=True)] = None
    l1: Annotated[float, *number(0.0)] = 0.0
    max_norm: Annotated[float | None, *number(0.0, above=True, null=True)] = None
    reference_batch_size: Annotated[int | None, *whole(1, 10_000_000, null=True)] = None


class Schedule(Section):
    """The learning rate over the steps."""

    name: Annotated[str, *choice(AUTO, *SCHEDULES)] = AUTO
    warmup: Annotated[float, *number(0.0, below=1.0)] = 0.0
    factor: Annotated[float | None, *number(0.0, above=True, below=1.0, null=True)] = None
    every: Annotated[float | None, *number(0.0, above=True, below=1.0, null=True)] = None


class EarlyStopping(Section):
    """Stop after `patience` epochs without a gain; the best epoch's weights are kept."""

    patience: Annotated[int, *whole(1)]


class WarmStart(Section):
    """Whose weights to begin with: a job's, or a model version's."""

    job: Annotated[str | None, *text(null=True)] = None
    step: Annotated[int | None, *whole(1, null=True)] = None
    model: Annotated[str | None, *identifier(null=True)] = None
    version: Annotated[int | None, *whole(1, null=True)] = None
    alias: Annotated[str | None, *choice(PRODUCTION, null=True)] = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        strangers = (self.version, self.alias) if self.job else (self.step, self.version and self.alias)
        if bool(self.job) == bool(self.model) or any(strangers):
            raise wrong(WARM_STARTS, self.model_dump(exclude_none=True))
        return self


class Training(Section):
    """How long, how much at a time, from which seed."""

    epochs: Annotated[int | str, *whole(1, 1_000_000, auto=True)] = AUTO
    batch_size: Annotated[int | str, *whole(1, 10_000_000, auto=True)] = AUTO
    seed: Seed = 0
    precision: Annotated[str, *choice("float32", "float64", later=("bfloat16", "float16"))] = "float32"
    early_stopping: EarlyStopping | str | None = AUTO
    max_seconds: Annotated[float | None, *number(0.0, above=True, null=True)] = None
    checkpoint_every_seconds: Annotated[int, *whole(1, 86_400)] = 30
    log_every_steps: Annotated[int | str, *whole(1, auto=True)] = AUTO
    class_weight: Annotated[str | dict[str, float] | None, *weights_by_label()] = None
    warm_start: WarmStart | None = None

    @field_validator("warm_start", mode="wrap")
    @classmethod
    def _warm_start(cls, value: Any, handler: Any) -> Any:
        if value is not None and not isinstance(value, dict | WarmStart):
            raise wrong(WARM_STARTS, value)
        return None if value is None else WarmStart.model_validate(value)

    @field_validator("early_stopping", mode="wrap")
    @classmethod
    def _early_stopping(cls, value: Any, handler: Any) -> Any:
        if value is None or value == AUTO:
            return value
        if not isinstance(value, dict | EarlyStopping):
            raise wrong("auto, null or {patience: 10}", value)
        return EarlyStopping.model_validate(value)


class WorkerRange(Section):
    """So many workers at least, and as many more as there are idle cores for."""

    min: Annotated[int, *whole(1, MOST_WORKERS)]
    max: Annotated[int, *whole(1, MOST_WORKERS)]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise wrong("min to be at most max", self.model_dump())
        return self


class Distribution(Section):
    """How the work is cut up."""

    workers: WorkerRange | int | str = AUTO
    shards: Annotated[int | str, *whole(1, 4096, auto=True)] = AUTO
    mode: Annotated[str, *choice("sync", "local")] = "sync"
    local_steps: Annotated[int, *whole(1, 10_000)] = 1
    outer: Annotated[str, *choice(*OUTER)] = "average"
    threads_per_worker: Annotated[int, *whole(1, 1024)] = 1
    gradient_precision: Annotated[str, *choice("full", "half")] = "full"

    @field_validator("workers", mode="wrap")
    @classmethod
    def _workers(cls, value: Any, handler: Any) -> Any:
        if isinstance(value, dict | WorkerRange):
            return WorkerRange.model_validate(value)
        expected = f"auto, a whole number between 1 and {MOST_WORKERS} or {{min: 1, max: 8}}"
        return value if value == AUTO else as_whole(value, 1, MOST_WORKERS, expected)


class Model(Section):
    """Under which name the network is registered, and whether it is deployed at once."""

    name: Annotated[str | None, *identifier(null=True)] = None
    deploy: Annotated[str, *choice("never", "always", "if_better")] = "never"


class Exclude(Section):
    """All columns but these."""

    exclude: list[Annotated[str, *text()]]


def _target(value: Any) -> Any:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) and item for item in value):
        return value
    raise wrong("a column's name, or a list of them", value)


def _features(value: Any) -> Any:
    if isinstance(value, dict | Exclude):
        return Exclude.model_validate(value)
    if value == "all" or (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
        return value
    raise wrong("all, a list of column names, or {exclude: [...]}", value)


def _metadata(value: Any) -> Any:
    expected = "at most 16 pairs of texts: names of 1 to 64 letters, digits, blanks and _.:-, values of at most 500"
    if not isinstance(value, dict) or len(value) > 16:
        raise wrong(expected, value)
    for key, held in value.items():
        named = isinstance(key, str) and MLFLOW_NAME.fullmatch(key)
        if not named or not isinstance(held, str) or len(held) > 500:
            raise wrong(expected, {key: held})
    return value


class JobSpec(Section):
    """A job, as it is submitted: `dataset` and `target` suffice."""

    dataset: Annotated[str, *text()]
    target: Annotated[str | list[str], PlainValidator(_target), WithJsonSchema({"type": ["string", "array"]})]
    name: Annotated[str | None, *identifier(null=True)] = None
    # all, a list of names or Exclude; Any, because the validator has decided which, and writing it out need not again
    features: Annotated[Any, PlainValidator(_features), WithJsonSchema({"type": ["string", "array", "object"]})] = "all"
    weight_column: Annotated[str | None, *text(null=True)] = None
    task: Annotated[str, *choice(AUTO, "classification", "regression")] = AUTO
    split: Split = Split()
    validation_dataset: Annotated[None, *only(None, "validation_dataset")] = None
    test_dataset: Annotated[None, *only(None, "test_dataset")] = None
    preprocessing: Preprocessing = Preprocessing()
    network: Network = Network()
    loss: Annotated[str | dict[str, Any], *kind(LOSSES, auto=True)] = AUTO
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    training: Training = Training()
    distribution: Distribution = Distribution()
    model: Model | None = Model()
    priority: Annotated[int, *whole(-100, 100)] = 0
    experiment: Annotated[str | None, *text(null=True, longest=200)] = None
    metadata: Annotated[dict[str, str], PlainValidator(_metadata), WithJsonSchema({"type": "object"})] = Field(
        default={}
    )

    @field_validator("optimizer", "schedule", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return _named(value)


class ScaleRequest(Section):
    """With how many workers a job goes on."""

    workers: Annotated[int, *whole(1, MOST_WORKERS)]


class DeployRequest(Section):
    """Which version to serve."""

    version: Annotated[int, *whole(1)]
    force: Annotated[bool, *flag()] = False


class PredictRequest(Section):
    """Rows to predict: records by column name, or lists in the signature's order."""

    instances: list[Any]
    outputs: list[str] | None = None


def path_of(location: tuple[int | str, ...]) -> str:
    """`network.hidden[0]` of ("network", "hidden", 0)."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def first_problem(error: ValidationError) -> tuple[str, str, str]:
    """(param, code, message) of the first thing that is wrong; an unknown field explains one that is absent."""
    problems = error.errors(include_url=False)
    problem = next((found for found in problems if found["type"] == "extra_forbidden"), problems[0])
    param, kind = path_of(problem["loc"]), problem["type"]
    if kind == "extra_forbidden":
        return param, "invalid_spec", f"{param} is not a known field"
    if kind == "missing":
        return param, "invalid_spec", f"{param} is required"
    if kind == "not_supported_yet":
        return param, kind, f"{param}: {problem['msg']}"
    return param, "invalid_spec", f"{param}: {problem['msg']}"
