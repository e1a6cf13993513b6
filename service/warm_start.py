"""The model that `training.warm_start` names: found, checked byte by byte, and kept for the job that starts with it."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

from core.columns import Value
from core.errors import ModelFileError
from core.model_file import Model, load_model
from core.network import NetworkSpec
from core.preprocessing import Preprocessing
from service.errors import ApiError, NotFound, SpecError
from service.planning import training_plan
from service.records import DatasetRecord, JobRecord
from service.resolve_warm_start import Source, source_name
from service.schemas import WarmStart
from service.settings import Settings
from service.store import Store
from worker.checkpoint_store import CheckpointStore
from worker.dataset import open_prepared
from worker.errors import CheckpointDamaged, CheckpointRefused, CheckpointStorageError
from worker.table import DatasetError, open_table
from worker.warm_start import FOLDER, keep

FIELD = "training.warm_start"
ABANDONED_SECONDS = 3600.0


def find_source(store: Store, settings: Settings, wanted: WarmStart) -> Source:
    """What `wanted` names, by numbers that stay what they are. Raises SpecError; ApiError where the disk fails."""
    try:
        if wanted.job is not None:
            return _job_source(store, settings, wanted.job, wanted.step)
        return _version_source(store, settings, wanted.model or "", wanted.version)
    except CheckpointStorageError as error:
        raise ApiError(503, "storage_unavailable", str(error), FIELD) from error


def keep_source(settings: Settings, job_id: str, source: Source) -> None:
    """Have the job own a copy, whatever becomes of the source. Raises ApiError disk_full, with nothing kept."""
    try:
        keep(settings.checkpoints / job_id / FOLDER, source.model)
    except OSError as error:
        forget_source(settings, job_id)
        raise ApiError(507, "disk_full", f"the weights of {source} cannot be kept: {error.strerror}", FIELD) from error


def forget_source(settings: Settings, job_id: str) -> None:
    """Of a job that has not come to be."""
    shutil.rmtree(settings.checkpoints / job_id, ignore_errors=True)


def sweep(store: Store, folder: Path) -> None:
    """Remove what was kept for jobs that a crash kept from being, long enough ago that none is still being made."""
    for kept in folder.glob(f"*/{FOLDER}"):
        try:
            if time.time() - kept.stat().st_mtime > ABANDONED_SECONDS:
                store.get_job(kept.parent.name)
        except NotFound:
            shutil.rmtree(kept.parent, ignore_errors=True)
        except FileNotFoundError:
            continue  # its job was deleted meanwhile


def target_classes(settings: Settings, dataset: DatasetRecord, target: str) -> tuple[Value, ...]:
    """The values of a column that is to be classes, from the summary or, where they are very many, from the rows."""
    column = next((each for each in dataset.columns or [] if each["name"] == target), {})
    if column.get("type") != "text" or "values" in column:
        return tuple(column.get("values", ()))
    return open_table(settings.datasets / dataset.id).columns([target])[target].vocabulary


def _job_source(store: Store, settings: Settings, job_id: str, step: int | None) -> Source:
    try:
        job = store.get_job(job_id)
    except NotFound as error:
        raise SpecError(f"{FIELD}.job", str(error)) from error
    if step is None and job.artifact_sha256 is not None:
        section = {"job": job.id}
        return Source(section, _load(settings, job.artifact_sha256, source_name(section)))
    checkpoints = CheckpointStore(settings.checkpoints / job.id)
    known = [each.step for each in checkpoints.list()]
    for number in known if step is None else [step]:
        try:
            parameters = checkpoints.parameters(number)
        except (CheckpointDamaged, CheckpointRefused) as error:
            if step is None:
                continue  # the one before it may be whole
            there = f"it has {', '.join(map(str, known))}" if known else "it has none"
            message = f"{job.id} has no checkpoint of step {step} that is whole ({error.reason}); {there}"
            raise SpecError(f"{FIELD}.step", message) from error
        network, fitted, dataset_sha256 = _treatment(store, settings, job)
        return Source({"job": job.id, "step": number}, Model(network, fitted, parameters, job.spec, dataset_sha256))
    message = f"{job.id} is {job.status} and has no weights yet: it has no model, and no checkpoint that is whole"
    raise SpecError(f"{FIELD}.job", message)


def _version_source(store: Store, settings: Settings, name: str, version: int | None) -> Source:
    try:
        production = store.get_model(name).production_version
    except NotFound as error:
        raise SpecError(f"{FIELD}.model", str(error)) from error
    number = production if version is None else version
    if number is None:
        message = f"no version of {name} is deployed; name one: {{model: {name}, version: 1}}"
        raise SpecError(f"{FIELD}.model", message)
    section = {"model": name, "version": number}
    try:
        sha256 = store.get_version(name, number).artifact_sha256
    except NotFound as error:
        known = ", ".join(str(each.version) for each in store.list_versions(name)[:10])
        raise SpecError(f"{FIELD}.version", f"{error}; the newest are {known}") from error
    return Source(section, _load(settings, sha256, source_name(section)))


def _load(settings: Settings, artifact_sha256: str, name: str) -> Model:
    try:
        return load_model(settings.artifacts / artifact_sha256)
    except ModelFileError as error:
        raise SpecError(FIELD, f"the model of {name} is not in the artifact store as it should be: {error}") from error


def _treatment(store: Store, settings: Settings, job: JobRecord) -> tuple[NetworkSpec, Preprocessing, str]:
    """A job's network, fitted preprocessing and dataset hash: from its model or, before it has one, its arrays."""
    if job.artifact_sha256 is not None:
        model = _load(settings, job.artifact_sha256, job.id)
        return model.network, model.preprocessing, model.dataset_sha256
    try:
        plan = training_plan(job, store.get_dataset(job.dataset_id), settings)
        fitted = open_prepared(settings.prepared / plan.data.key()).preprocessing
    except (NotFound, DatasetError) as error:
        message = f"{job.id} has no model yet, and how it treats its features is not known any more: {error}"
        raise SpecError(f"{FIELD}.job", message) from error
    return replace(plan.network, inputs=fitted.width, outputs=fitted.outputs), fitted, plan.data.dataset_sha256
