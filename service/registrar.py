"""The last phase of a job: its model becomes one version in MLflow's registry, is deployed by its policy, and done."""

import json
import time
from typing import TYPE_CHECKING

from service.artifacts import ArtifactStore
from service.errors import Conflict, NotFound
from service.job_events import RegistrationBegins
from service.job_state import RUNNING
from service.reconcile import Decision, Deployable, deploy_decision
from service.records import JobRecord, NewEvent, VersionRecord
from service.resolve_warm_start import source_name
from service.store import Store
from service.tracked import START_TAG, Registration, RunDescription, RunReference, TrackedDataset

if TYPE_CHECKING:
    from service.publisher import MlflowServer


def describe(store: Store, job: JobRecord) -> RunDescription:
    """The job's run as MLflow shows it."""
    try:
        dataset = store.get_dataset(job.dataset_id)
        columns = [{"name": c["name"], "type": c["type"]} for c in dataset.columns or []]
        tracked = TrackedDataset(
            name=dataset.name,
            sha256=dataset.sha256 or "",
            source=json.dumps({"id": dataset.id, "name": dataset.name, "version": dataset.version}),
            schema=json.dumps(columns),
            profile=json.dumps({"rows": dataset.rows, "columns": len(columns), "bytes": dataset.bytes}),
        )
    except NotFound:  # deleted after the job had ended, before MLflow was back
        tracked = TrackedDataset(job.dataset_id, "deleted", json.dumps({"id": job.dataset_id}), None, None)
    return RunDescription(
        job_id=job.id,
        name=job.name,
        experiment=job.spec["experiment"],
        started_at=job.started_at or job.created_at,
        parameters=job.spec,
        tags=job.metadata | _start(job),
        dataset=tracked,
    )


def finish(store: Store, artifacts: ArtifactStore, mlflow: "MlflowServer", job: JobRecord, run: RunReference) -> None:
    """Registers the model of a job in phase `registering`, and ends the job as succeeded; not a cancelled one.

    Raises ArtifactError when the model's files are damaged, and what MLflow and the store raise.
    """
    job, _ = store.apply(job.id, RegistrationBegins(time.time(), job.lease_epoch))
    if job.status != RUNNING:
        return
    if job.model_name is not None:
        number = mlflow.register(run, registration(artifacts, job, job.model_name))
        version = store.record_version(job.id, number)
        decision = deploy(store, job, version)
        message = f"registered as version {number} of {version.name}; "
        message += f"deployed: {decision.reason}" if decision.deploy else f"not deployed: {decision.reason}"
        data = {"model": version.name, "version": number, "deployed": decision.deploy}
        event = NewEvent("log", "info", message, data)
        store.set_progress(job.id, job.lease_epoch, job.progress or {}, events=[event])
    mlflow.end_run(run.run_id, "succeeded", time.time())
    store.finish_job(job.id, job.lease_epoch, "succeeded")
    store.mark_run_ended(job.id)


def registration(artifacts: ArtifactStore, job: JobRecord, name: str) -> Registration:
    """What MLflow is to get; the files are checked against their hash first."""
    result, metadata = job.result or {}, job.model_metadata or {}
    hashes = {key: result[key] for key in ("weights_sha256", "model_sha256", "numerics")}
    hashes["artifact_sha256"] = job.artifact_sha256 or ""
    return Registration(
        job_id=job.id,
        name=name,
        artifact=artifacts.check(job.artifact_sha256 or ""),
        step=metadata["step"],
        signature=metadata["signature"],
        input_example=metadata["input_example"],
        metadata={"job_id": job.id, "signature": metadata["signature"], **hashes},
        tags={**job.metadata, **{f"fallline.{key}": str(value) for key, value in hashes.items()}, **_start(job)},
    )


def _start(job: JobRecord) -> dict[str, str]:
    """A tag that says whose weights the job began with, where they were not random."""
    source = job.spec["training"].get("warm_start")
    return {} if source is None else {START_TAG: source_name(source)}


def deploy(store: Store, job: JobRecord, version: VersionRecord) -> Decision:
    """Deploys the version as the job's policy says. A changed signature is for a person to decide about."""
    before = store.get_model(version.name).production_version
    deployed = None if before is None else deployable(store.get_version(version.name, before))
    decision = deploy_decision(job.spec["model"]["deploy"], deployable(version), deployed)
    if not decision.deploy:
        return decision
    try:
        store.deploy(version.name, version.version, actor=job.id)
    except Conflict as conflict:
        return Decision(False, str(conflict))
    return decision


def deployable(version: VersionRecord) -> Deployable:
    """A version as the deploy policy sees it."""
    is_classification = any(output["name"] == "label" for output in version.signature["outputs"])
    metrics = {name: value for name, value in version.metrics.items() if value is not None}
    task = "classification" if is_classification else "regression"
    return Deployable(version.version, task, version.dataset_sha256, version.split, metrics)
