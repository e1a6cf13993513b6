"""MLflow, and nothing else: the only file that imports it, since the import alone takes seconds.

Every method may be called again after it failed half way: a run, a logged model and a version are looked for by the
job's tag before they are made, and a metric point is absorbed by MLflow when it is there already. All calls are
bounded by short timeouts; who calls is a thread of its own (`service.publisher`), never the reconcile loop.
"""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

# MLflow reads these when it is imported, or at each call. By default one call may take 4 minutes to fail.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ["MLFLOW_UV_AUTO_DETECT"] = "false"
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"

import mlflow.pyfunc
import requests
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType, Map

from service.tracked import (
    CODE_PACKAGE,
    JOB_TAG,
    PRODUCTION,
    Registration,
    RunDescription,
    RunReference,
    TrackedPoint,
    TrackingDown,
    TrackingRefused,
    code_package,
    flatten,
    requirements,
)

METRICS_PER_BATCH = 1000
MODELS_PER_PAGE = 1000
PARAMETERS_PER_BATCH = 100
VALUE_LENGTH = 6000
DIGEST_LENGTH = 36
REFUSED = frozenset(
    {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "PERMISSION_DENIED"}
    | {"BAD_REQUEST", "INVALID_STATE", "UNAUTHENTICATED", "ENDPOINT_NOT_FOUND", "NOT_FOUND"}
)

P = ParamSpec("P")
T = TypeVar("T")


def translated(call: Callable[P, T]) -> Callable[P, T]:
    """MLflow's errors as two of ours: not there (try later), or there and saying no (a person has to look)."""

    @wraps(call)
    def translating(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except MlflowException as error:
            kind = TrackingRefused if error.error_code in REFUSED else TrackingDown
            raise kind(call.__name__, str(error)) from error
        except requests.HTTPError as error:
            refused = error.response is not None and error.response.status_code < 500
            raise (TrackingRefused if refused else TrackingDown)(call.__name__, str(error)) from error
        except (requests.RequestException, ConnectionError, TimeoutError) as error:
            raise TrackingDown(call.__name__, str(error)) from error

    return translating


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of at most `size`."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def milliseconds(seconds: float) -> int:
    """MLflow's times. Rounded in one place: a point that is sent again must have the same time, to be the same."""
    return round(seconds * 1000)


class Tracking:
    """One MLflow server, for tracking and registry. Raises `TrackingDown` or `TrackingRefused`, nothing of MLflow's."""

    def __init__(self, uri: str) -> None:
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    @translated
    def check(self) -> None:
        """Returns when the server answers."""
        self.client.search_experiments(max_results=1)

    @translated
    def start_run(self, description: RunDescription) -> RunReference:
        """The job's run: found by its tag, or made; with its parameters, tags and dataset either way."""
        experiment_id = self._experiment(description.experiment)
        run = self._find_run(experiment_id, description.job_id) or self.client.create_run(
            experiment_id,
            start_time=milliseconds(description.started_at),
            tags={JOB_TAG: description.job_id},
            run_name=description.name,
        )
        run_id = run.info.run_id
        parameters = [Param(name, value[:VALUE_LENGTH]) for name, value in flatten(description.parameters).items()]
        for batch in batches(parameters, PARAMETERS_PER_BATCH):
            self.client.log_batch(run_id, params=batch)
        if description.tags:
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in description.tags.items()])
        self.client.log_inputs(run_id, datasets=[_dataset_input(description)])
        return RunReference(run_id, experiment_id)

    @translated
    def log_points(self, run_id: str, points: Sequence[TrackedPoint]) -> None:
        """Logs metric points; those that are there already stay as they are."""
        for batch in batches(points, METRICS_PER_BATCH):
            metrics = [
                Metric(p.series, math.nan if p.value is None else p.value, milliseconds(p.timestamp), p.step)
                for p in batch
            ]
            self.client.log_batch(run_id, metrics=metrics)

    @translated
    def end_run(self, run_id: str, status: str, finished_at: float) -> None:
        """Closes the run; `status` is the job's: succeeded, failed or cancelled."""
        status = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}[status]
        self.client.set_terminated(run_id, status, milliseconds(finished_at))

    @translated
    def register(self, run: RunReference, registration: Registration) -> int:
        """The number of the job's one version of the registered model, which is made if it is not there."""
        name = registration.name
        self._registered_model(name)
        for version in self.client.search_model_versions(f"name = '{name}'", max_results=10_000):
            if version.tags.get(JOB_TAG) == registration.job_id:
                return int(version.version)
        model_id = self._logged_model(run, registration)
        tags = {**registration.tags, JOB_TAG: registration.job_id}
        version = self.client.create_model_version(
            name, f"models:/{model_id}", run.run_id, tags, await_creation_for=None, model_id=model_id
        )
        return int(version.version)

    @translated
    def set_production(self, name: str, version: int | None) -> None:
        """Moves the alias `production`, or takes it away. Where it points there already, nothing happens."""
        if self._production(name) == version:
            return
        if version is None:
            self.client.delete_registered_model_alias(name, PRODUCTION)
        else:
            self.client.set_registered_model_alias(name, PRODUCTION, str(version))

    @translated
    def production(self, names: Iterable[str]) -> dict[str, int | None]:
        """Where each model's alias `production` points; a model that MLflow does not know is left out."""
        wanted, found, token = set(names), {}, None
        while wanted:
            page = self.client.search_registered_models(max_results=MODELS_PER_PAGE, page_token=token)
            found.update({model.name: _pointed_at(model) for model in page if model.name in wanted})
            if not (token := page.token):
                break
        return found

    def _production(self, name: str) -> int | None:
        return _pointed_at(self.client.get_registered_model(name))

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return str(self.client.create_experiment(name))
        if found.lifecycle_stage == "deleted":  # in MLflow's UI; its name stays taken
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _find_run(self, experiment_id: str, job_id: str) -> Run | None:
        wanted = f"tags.`{JOB_TAG}` = '{job_id}'"
        runs = self.client.search_runs([experiment_id], wanted, ViewType.ALL, 1, ["attributes.start_time ASC"])
        if runs and runs[0].info.lifecycle_stage == "deleted":
            self.client.restore_run(runs[0].info.run_id)
        return runs[0] if runs else None

    def _registered_model(self, name: str) -> None:
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _logged_model(self, run: RunReference, registration: Registration) -> str:
        """The id of the job's logged model, complete."""
        wanted = f"tags.`{JOB_TAG}` = '{registration.job_id}'"
        found = self.client.search_logged_models([run.experiment_id], wanted)
        model = (
            found[0]
            if found
            else self.client.create_logged_model(
                run.experiment_id, registration.name, run.run_id, {JOB_TAG: registration.job_id}, model_type="fallline"
            )
        )
        if model.status != LoggedModelStatus.READY:
            with tempfile.TemporaryDirectory(prefix="fallline-") as temporary:
                described = Model(run_id=run.run_id, artifact_path=model.artifact_location, model_id=model.model_id)
                folder = write_model_folder(Path(temporary), registration, described)
                self.client.log_model_artifacts(model.model_id, str(folder))
            self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        outputs = self.client.get_run(run.run_id).outputs  # MLflow refuses one that is there already
        if outputs is None or model.model_id not in {output.model_id for output in outputs.model_outputs}:
            self.client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, registration.step)])
        return str(model.model_id)


def _pointed_at(model: RegisteredModel) -> int | None:
    version = model.aliases.get(PRODUCTION)
    return None if version is None else int(version)


def _dataset_input(description: RunDescription) -> DatasetInput:
    dataset = description.dataset
    digest = dataset.sha256[:DIGEST_LENGTH]
    entity = Dataset(dataset.name, digest, "fallline", dataset.source, dataset.schema, dataset.profile)
    return DatasetInput(entity, [InputTag("mlflow.data.context", "training")])


def write_model_folder(temporary: Path, registration: Registration, described: Model) -> Path:
    """An MLflow model below `temporary`: model.json and weights.safetensors at its top, and the code that reads them.

    Nothing of the model is imported or run here: signature and requirements are given, so MLflow has nothing to infer.
    """
    folder = temporary / "model"
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module=f"{CODE_PACKAGE}.model_file",
        code_paths=[str(code_package(temporary))],
        mlflow_model=described,
        signature=_signature(registration.signature),
        input_example=registration.input_example or None,
        pip_requirements=requirements(),
        metadata={"fallline": registration.metadata},
    )
    for path in registration.artifact.iterdir():
        shutil.copyfile(path, folder / path.name)
    described.model_size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    described.save(str(folder / "MLmodel"))
    return folder


def _signature(signature: Mapping[str, Any]) -> ModelSignature:
    """The preprocessing's signature in MLflow's types.

    MLflow refuses a frame of integers where doubles are declared, and doubles where integers are; which of the two a
    frame holds depends on how it was read. Numeric columns are therefore declared `any`: the model's own checks take
    both, refuse what is not a number, and name row and column.
    """
    inputs = {"text": DataType.string, "boolean": DataType.boolean}
    outputs = inputs | {"integer": DataType.long, "number": DataType.double, "object": Map(AnyType())}
    return ModelSignature(
        Schema([ColSpec(inputs.get(c["type"], AnyType()), c["name"], c["required"]) for c in signature["inputs"]]),
        Schema([ColSpec(outputs[c["type"]], c["name"]) for c in signature["outputs"]]),
    )
