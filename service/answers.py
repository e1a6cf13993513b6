"""Records of the store as the JSON that the contract promises. A number that is not finite becomes null."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.responses import Response

from service.records import DatasetRecord, DeploymentRecord, EventRecord, JobRecord, ModelRecord, Page, VersionRecord
from worker.checkpoint import CheckpointDescription

Json = dict[str, Any]


class Answer(Response):
    """JSON, encoded by orjson: it writes NaN and infinities as null, and costs microseconds."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)


def listed(data: Sequence[Json], has_more: bool, key: str = "id") -> Json:
    """One page of a list."""
    return {
        "object": "list",
        "data": list(data),
        "has_more": has_more,
        "first_id": data[0][key] if data else None,
        "last_id": data[-1][key] if data else None,
    }


def page(found: Page, view: Any, key: str = "id") -> Json:
    """One page of records, each as `view` shows it."""
    return listed([view(record) for record in found.data], found.has_more, key)


def dataset(record: DatasetRecord) -> Json:
    """A dataset; of each column what its user may want to see."""
    hidden = {"file", "vocabulary_file"}
    columns = [{key: value for key, value in column.items() if key not in hidden} for column in record.columns or []]
    return {
        "object": "dataset",
        "id": record.id,
        "name": record.name,
        "version": record.version,
        "status": record.status,
        "created_at": record.created_at,
        "format": record.format,
        "rows": record.rows,
        "bytes": record.bytes,
        "sha256": record.sha256,
        "columns": columns,
        "error": record.error,
    }


def job(record: JobRecord, production: Mapping[str, int | None], mlflow_url: str) -> Json:
    """A job; `production` tells which version of each model is deployed."""
    run, model = None, None
    if record.run_id is not None:
        url = f"{mlflow_url}/#/experiments/{record.experiment_id}/runs/{record.run_id}"
        run = {"run_id": record.run_id, "url": url}
    if record.model_version is not None and record.model_name is not None:
        deployed = production.get(record.model_name) == record.model_version
        model = {"name": record.model_name, "version": record.model_version, "deployed": deployed}
    return {
        "object": "job",
        "id": record.id,
        "name": record.name,
        "status": record.status,
        "status_reason": record.status_reason,
        "created_at": record.created_at,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "cancel_requested": record.cancel_requested,
        "pause_requested": record.pause_requested,
        "spec": record.spec,
        "metadata": record.metadata,
        "progress": record.progress or _no_progress(record),
        "metrics": record.metrics,
        "result": record.result,
        "mlflow": run,
        "model": model,
        "error": record.error,
    }


def _no_progress(record: JobRecord) -> Json:
    epochs, steps = record.spec["training"]["epochs"], record.plan["steps"]
    known = {"phase": None, "epoch": 0, "epochs": epochs, "step": 0, "steps": steps}
    return {**known, "examples_per_second": 0.0, "eta_seconds": None, "workers": 0}


def event(record: EventRecord) -> Json:
    """An event of a job."""
    return {
        "object": "job.event",
        "id": record.id,
        "type": record.type,
        "created_at": record.created_at,
        "level": record.level,
        "message": record.message,
        "data": record.data,
    }


def checkpoint(found: CheckpointDescription) -> Json:
    """A checkpoint of a job."""
    return {
        "object": "checkpoint",
        "step": found.step,
        "epoch": found.epoch,
        "bytes": found.bytes,
        "sha256": found.sha256,
        "created_at": found.created_at,
    }


def metrics(series: Mapping[str, list[tuple[int, float | None]]], max_points: int | None) -> Json:
    """Every series against the committed step, of at most `max_points` points each, the last one always there."""
    found = {}
    for name, points in series.items():
        chosen = thinned(points, max_points)
        found[name] = {"steps": [step for step, _ in chosen], "values": [value for _, value in chosen]}
    return {"object": "metrics", "series": found}


def thinned(points: list[Any], most: int | None) -> list[Any]:
    """At most `most` of the points, evenly spread, first and last among them (the last alone where `most` is 1)."""
    if most is None or len(points) <= most:
        return points
    if most == 1:
        return points[-1:]
    return [points[round(k * (len(points) - 1) / (most - 1))] for k in range(most)]


def version(record: VersionRecord, production: int | None) -> Json:
    """A version of a model."""
    deployed = record.version == production
    return {
        "object": "model_version",
        "name": record.name,
        "version": record.version,
        "created_at": record.created_at,
        "aliases": ["production"] if deployed else [],
        "deployed": deployed,
        "signature": record.signature,
        "metrics": record.metrics,
        "job_id": record.job_id,
        "run_id": record.run_id,
        "dataset": {"id": record.dataset_id, "sha256": record.dataset_sha256},
        "metadata": record.metadata,
        "weights_sha256": record.result.get("weights_sha256"),
        "model_sha256": record.result.get("model_sha256"),
        "numerics": record.result.get("numerics"),
        "parameters": record.result.get("parameters"),
        "artifact_sha256": record.artifact_sha256,
    }


def model(record: ModelRecord, versions: Sequence[VersionRecord]) -> Json:
    """A model with its versions, newest first."""
    aliases = {} if record.production_version is None else {"production": record.production_version}
    return {
        "object": "model",
        "name": record.name,
        "created_at": record.created_at,
        "aliases": aliases,
        "latest_version": versions[0].version if versions else None,
        "versions": [version(v, record.production_version) for v in versions],
    }


def deployment(record: DeploymentRecord) -> Json:
    """One move of `production`."""
    return {
        "object": "deployment",
        "id": record.number,
        "model": record.name,
        "created_at": record.created_at,
        "action": record.action,
        "actor": record.actor,
        "from": record.from_version,
        "to": record.to_version,
    }
