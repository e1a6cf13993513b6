"""The store's tables. Statements over them stand in `store*.py`; their history in `migrations/`."""

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    UniqueConstraint,
    text,
)

HEAD = "0004"  # the newest migration; the API compares it with the database before it loads Alembic

metadata = MetaData()
_JSON = JSON(none_as_null=True)


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False, server_default=text("0"))


def _count(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=text("0"))


datasets = Table(
    "datasets",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),  # the order of creation
    Column("id", String, nullable=False, unique=True),
    Column("name", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("status", String, nullable=False),  # processing, ready, failed
    Column("created_at", Float, nullable=False),
    Column("format", String, nullable=False),
    Column("bytes", Integer),
    Column("rows", Integer),
    Column("sha256", String),
    Column("columns", _JSON),
    Column("error", _JSON),
    UniqueConstraint("name", "version"),
    sqlite_autoincrement=True,
)

jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("name", String, nullable=False),
    _count("priority"),  # the higher, the earlier
    Column("status", String, nullable=False),
    Column("status_reason", String),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    _flag("cancel_requested"),
    _flag("pause_requested"),
    Column("waits_for_disk", String),  # why the service has it pause, and resumes it by itself; NULL: it does not
    Column("workers_requested", Integer),  # by a request to scale; NULL: as the spec has it
    Column("dataset_id", String, nullable=False),
    Column("spec", _JSON, nullable=False),
    Column("plan", _JSON, nullable=False),
    Column("metadata", _JSON, nullable=False),
    Column("progress", _JSON),
    Column("metrics", _JSON, nullable=False),
    Column("result", _JSON),
    Column("error", _JSON),
    Column("artifact_sha256", String),
    Column("model_metadata", _JSON),
    Column("model_name", String),  # the registered model's; NULL: the job registers nothing
    Column("model_version", Integer),
    _flag("registering"),  # MLflow may hold a version of it
    Column("lease_owner", String),
    _count("lease_epoch"),
    Column("lease_expires_at", Float),
    _count("event_count"),
    _count("point_count"),
    _count("published_seq"),
    Column("run_id", String),
    Column("experiment_id", String),
    _flag("run_ended"),
    CheckConstraint("status IN ('queued','running','paused','succeeded','failed','cancelled')", name="jobs_status"),
    Index("jobs_by_status", "status", "number"),
    Index("jobs_by_dataset", "dataset_id"),
    sqlite_autoincrement=True,
)
Index("jobs_in_turn", jobs.c.status, jobs.c.priority.desc(), jobs.c.number)
# The few whose runs in MLflow are open: the publisher looks through them many times a second.
Index(
    "jobs_untold",
    jobs.c.number,
    sqlite_where=text("run_ended IS 0 AND started_at IS NOT NULL"),
    postgresql_where=text("run_ended IS false AND started_at IS NOT NULL"),
)

# One row: which of several controllers works.
leads = Table(
    "leads",
    metadata,
    Column("name", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("expires_at", Float, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("id", Integer, nullable=False),  # rises by one within a job
    Column("type", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("level", String, nullable=False),
    Column("message", String, nullable=False),
    Column("data", _JSON, nullable=False),
    PrimaryKeyConstraint("job_id", "id"),
    sqlite_with_rowid=False,
)

points = Table(
    "metric_points",
    metadata,
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("series", String, nullable=False),
    Column("step", Integer, nullable=False),
    Column("value", Float),  # NULL: it was not a finite number
    Column("timestamp", Float, nullable=False),
    Column("seq", Integer, nullable=False),  # rises by one within a job: the outbox's order
    PrimaryKeyConstraint("job_id", "series", "step"),
    Index("points_by_seq", "job_id", "seq", unique=True),
    sqlite_with_rowid=False,
)

models = Table(
    "models",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("name", String, nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("production_version", Integer),
    _count("deployment_number"),  # how often `production` has moved
    _count("synced_number"),  # up to which move MLflow's alias has followed
    sqlite_autoincrement=True,
)

versions = Table(
    "model_versions",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("name", String, ForeignKey("models.name"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("job_id", String, nullable=False, unique=True),  # one version a job, whatever is retried
    Column("run_id", String),
    Column("artifact_sha256", String, nullable=False),
    Column("signature", _JSON, nullable=False),
    Column("metadata", _JSON, nullable=False),
    Column("metrics", _JSON, nullable=False),
    Column("result", _JSON, nullable=False),
    Column("dataset_id", String, nullable=False),
    Column("dataset_sha256", String, nullable=False),
    Column("split", _JSON, nullable=False),
    UniqueConstraint("name", "version"),
    sqlite_autoincrement=True,
)

deployments = Table(
    "deployments",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("name", String, ForeignKey("models.name"), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("action", String, nullable=False),  # deploy, rollback, delete, followed
    Column("actor", String, nullable=False),
    Column("from_version", Integer),
    Column("to_version", Integer),
    Index("deployments_by_name", "name", "number"),
    sqlite_autoincrement=True,
)

idempotency = Table(
    "idempotency_keys",
    metadata,
    Column("key", String, nullable=False),
    Column("route", String, nullable=False),
    Column("body_sha256", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("resource_id", String, nullable=False),
    Column("status", Integer),  # NULL: the first answer is not known yet
    Column("answer", String),
    PrimaryKeyConstraint("key", "route"),
)

# One row a name, raised in the transaction that changes what it counts: pollers read one integer.
counters = Table(
    "counters",
    metadata,
    Column("name", String, primary_key=True),  # events, deployments
    Column("value", Integer, nullable=False),
)
