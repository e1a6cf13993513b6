"""What the store hands out: frozen records, one a row. Times are Unix seconds."""

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class DatasetRecord:
    """An uploaded table. `columns` as dataset.json has them; None until it is ready."""

    number: int
    id: str
    name: str
    version: int
    status: str  # processing, ready, failed
    created_at: float
    format: str
    bytes: int | None
    rows: int | None
    sha256: str | None
    columns: list[Json] | None
    error: Json | None


@dataclass(frozen=True)
class JobRecord:
    """A job, its lease, and how far MLflow has been told of it."""

    number: int
    id: str
    name: str
    priority: int  # the higher, the earlier
    status: str
    status_reason: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    cancel_requested: bool
    pause_requested: bool
    waits_for_disk: str | None  # why the service itself has it pause
    workers_requested: int | None
    dataset_id: str
    spec: Json
    plan: Json
    metadata: dict[str, str]
    progress: Json | None
    metrics: dict[str, float | None]
    result: Json | None
    error: Json | None
    artifact_sha256: str | None
    model_metadata: Json | None  # signature, input_example
    model_name: str | None
    model_version: int | None
    registering: bool  # MLflow may hold a version of it
    lease_owner: str | None
    lease_epoch: int
    lease_expires_at: float | None
    event_count: int
    point_count: int
    published_seq: int
    run_id: str | None
    experiment_id: str | None
    run_ended: bool


@dataclass(frozen=True)
class LeadRecord:
    """Which controller works, until when. `epoch` rises by one with each change."""

    owner: str
    epoch: int
    expires_at: float


@dataclass(frozen=True)
class EventRecord:
    """An event of a job; `id` rises by one within it."""

    job_id: str
    id: int
    type: str
    created_at: float
    level: str
    message: str
    data: Json


@dataclass(frozen=True)
class NewEvent:
    """An event to be."""

    type: str
    level: str
    message: str
    data: Json


@dataclass(frozen=True)
class PointRecord:
    """A metric point; `seq` rises by one within the job, in the order of arrival. `value` None: not finite."""

    series: str
    step: int
    value: float | None
    timestamp: float
    seq: int


@dataclass(frozen=True)
class ModelRecord:
    """A registered model and where `production` points."""

    number: int
    name: str
    created_at: float
    production_version: int | None
    deployment_number: int
    synced_number: int


@dataclass(frozen=True)
class VersionRecord:
    """A version of a model: the artifact that it is, and the job that it came from."""

    number: int
    name: str
    version: int
    created_at: float
    job_id: str
    run_id: str | None
    artifact_sha256: str
    signature: Json
    metadata: dict[str, str]
    metrics: dict[str, float | None]
    result: Json
    dataset_id: str
    dataset_sha256: str
    split: Json


@dataclass(frozen=True)
class DeploymentRecord:
    """One move of `production`. `action`: deploy, rollback, delete, followed."""

    number: int
    name: str
    created_at: float
    action: str
    actor: str
    from_version: int | None
    to_version: int | None


@dataclass(frozen=True)
class Page:
    """One page of a list, newest first, and whether there is more."""

    data: list[Any]
    has_more: bool


@dataclass(frozen=True)
class Idempotent:
    """What is known under an idempotency key: the first answer, or None while it is being worked out."""

    resource_id: str
    status: int | None
    answer: str | None
