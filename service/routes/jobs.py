"""/v1/jobs: submit, dry run, list, show, cancel, pause, resume, scale, delete, metrics."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from service import answers
from service.answers import Answer
from service.bodies import read_object, validated
from service.context import Context, context
from service.errors import ApiError, NotFound, SpecError, StoreError, StoreUnavailable
from service.idempotency import create_once, new_id
from service.job_state import FINAL, STATUSES
from service.records import DatasetRecord, JobRecord
from service.resolve import Resolved, check_workers, resolve
from service.resolve_warm_start import Source
from service.schemas import JobSpec, ScaleRequest
from service.warm_start import find_source, forget_source, keep_source, target_classes
from worker.checkpoint_store import CheckpointStore

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
Parts = Annotated[Context, Depends(context)]
_SCHEMA = {"schema": JobSpec.model_json_schema(ref_template="#/components/schemas/{model}")}
_BODY = {"requestBody": {"required": True, "content": {"application/json": _SCHEMA, "application/yaml": _SCHEMA}}}


@router.post("", status_code=201, openapi_extra=_BODY)
async def submit(
    request: Request,
    parts: Parts,
    dry_run: bool = False,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    """Submit a job; with `dry_run`, check everything and answer with the plan."""
    data, sha256 = await read_object(request)
    return await run_in_threadpool(_submit, parts, data, sha256, dry_run, idempotency_key)


def _submit(parts: Context, data: dict[str, Any], sha256: str, dry_run: bool, key: str | None) -> Answer:
    spec = validated(JobSpec, data)

    def create(job_id: str) -> tuple[int, answers.Json]:
        dataset, resolved, source = _resolve(parts, spec)
        if source is not None:  # first: the job, once there, needs nothing of the source any more
            keep_source(parts.settings, job_id, source)
        try:
            record = parts.store.create_job(
                job_id,
                resolved.spec["name"],
                dataset.id,
                resolved.spec,
                resolved.plan,
                spec.metadata,
                resolved.model_name,
                priority=spec.priority,
                most_queued=parts.settings.max_queued_jobs,
            )
        except StoreUnavailable:
            raise  # the job may be there all the same; where it is not, a sweep takes what was kept for it
        except StoreError:
            forget_source(parts.settings, job_id)
            raise
        return 201, job_answer(parts, record)

    def find(job_id: str) -> answers.Json | None:
        try:
            return job_answer(parts, parts.store.get_job(job_id))
        except NotFound:
            return None

    if dry_run:
        return Answer(_resolve(parts, spec)[1].plan)
    return create_once(parts.store, key, "/v1/jobs", sha256, new_id("job"), create, find)


def _resolve(parts: Context, spec: JobSpec) -> tuple[DatasetRecord, Resolved, Source | None]:
    try:
        dataset = parts.store.get_dataset(spec.dataset)
    except NotFound as error:
        raise SpecError("dataset", f"there is no dataset {spec.dataset!r}; upload it first") from error
    if dataset.status == "processing":
        message = f"{dataset.name} is still being checked; try again in a moment"
        raise ApiError(409, "dataset_not_ready", message, "dataset", headers={"Retry-After": "2"})
    if dataset.status == "failed":
        raise SpecError("dataset", f"{dataset.name} could not be read: {(dataset.error or {}).get('message')}")
    known = {"id": dataset.id, "name": dataset.name, "rows": dataset.rows, "columns": dataset.columns}
    wanted = spec.training.warm_start
    if wanted is None:
        return dataset, resolve(spec, known, parts.limits), None
    source = find_source(parts.store, parts.settings, wanted)
    classes = target_classes(parts.settings, dataset, source.model.preprocessing.spec.targets[0])
    return dataset, resolve(spec, known, parts.limits, source, classes), source


def job_answer(parts: Context, record: JobRecord) -> answers.Json:
    """A job as the API shows it."""
    production = {}
    if record.model_version is not None and record.model_name is not None:
        production[record.model_name] = parts.store.get_model(record.model_name).production_version
    return answers.job(record, production, parts.settings.mlflow_url)


@router.get("")
def list_jobs(
    request: Request,
    parts: Parts,
    status: str | None = None,
    name: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """Jobs, newest first; filtered by status, name and `metadata[key]=value`."""
    if status is not None and status not in STATUSES:
        raise ApiError(
            422, "invalid_request", f"status: expected one of {', '.join(STATUSES)}; got {status!r}", "status"
        )
    metadata = {
        key[len("metadata[") : -1]: value
        for key, value in request.query_params.items()
        if key.startswith("metadata[") and key.endswith("]")
    }
    found = parts.store.list_jobs(limit, after, status, name, metadata)
    production = {model.name: model.production_version for model in parts.store.all_models()}
    return Answer(answers.page(found, lambda job: answers.job(job, production, parts.settings.mlflow_url)))


@router.get("/{job_id}")
def show_job(parts: Parts, job_id: str) -> Response:
    """One job."""
    return Answer(job_answer(parts, parts.store.get_job(job_id)))


@router.post("/{job_id}/cancel", status_code=202)
def cancel_job(parts: Parts, job_id: str) -> Response:
    """Ask a job to stop; repeatable."""
    return Answer(job_answer(parts, parts.store.request_cancel(job_id)), 202)


@router.post("/{job_id}/pause", status_code=202)
def pause_job(parts: Parts, job_id: str) -> Response:
    """Ask a job to stop and to keep where it is; repeatable."""
    return Answer(job_answer(parts, parts.store.request_pause(job_id)), 202)


@router.post("/{job_id}/resume", status_code=202)
def resume_job(parts: Parts, job_id: str) -> Response:
    """Queue a paused job again, or take a request to pause back; repeatable."""
    return Answer(job_answer(parts, parts.store.request_resume(job_id)), 202)


@router.post("/{job_id}/scale", status_code=202)
async def scale_job(request: Request, parts: Parts, job_id: str) -> Response:
    """Have a job go on with another number of workers, from its next step on; repeatable."""
    wanted = validated(ScaleRequest, (await read_object(request))[0])
    check_workers("workers", wanted.workers, parts.limits)
    job = await run_in_threadpool(parts.store.request_scale, job_id, wanted.workers)
    return Answer(await run_in_threadpool(job_answer, parts, job), 202)


@router.delete("/{job_id}", status_code=204)
def delete_job(parts: Parts, job_id: str) -> Response:
    """Delete an ended job, with its events, metrics and checkpoints. Its run and its model stay."""
    if parts.store.get_job(job_id).status in FINAL:  # first: a crash between the two leaves nothing that nobody owns
        CheckpointStore(parts.settings.checkpoints / job_id).delete_all()
    parts.store.delete_job(job_id)
    return Response(status_code=204)


@router.get("/{job_id}/metrics")
def show_metrics(
    parts: Parts, job_id: str, max_points: Annotated[int | None, Query(ge=1, le=1_000_000)] = None
) -> Response:
    """Every series of the job, against the committed step."""
    parts.store.get_job(job_id)
    return Answer(answers.metrics(parts.store.metric_series(job_id), max_points))
