"""Predictions in the API's own process, from the artifact cache: MLflow need not be up, nor anything else."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import ModelFileError
from core.model_file import Model, load_model
from service.errors import ApiError
from service.store import Store


class Predictor:
    """Loads models on first use and keeps the `kept` most recently used. Threads share it."""

    def __init__(self, store: Store, artifacts: Path, kept: int) -> None:
        self._store, self._artifacts, self._kept = store, artifacts, kept
        self._lock = threading.Lock()
        self._models: OrderedDict[str, Model] = OrderedDict()  # by the artifact's hash
        self._deployed: dict[str, int] = {}
        self._hashes: dict[tuple[str, int], str] = {}
        self._generation = 0

    def forget_deployments(self) -> None:
        """Look anew at which version is deployed: it may have changed."""
        with self._lock:
            self._generation += 1
            self._deployed.clear()

    def predict(
        self, name: str, version: int | None, instances: Sequence[Any], outputs: Sequence[str] | None
    ) -> tuple[int, list[dict[str, Any]]]:
        """The version that answered, and one prediction a row. Version None: the deployed one.

        NotFound: no such model or version. ApiError not_deployed, or artifact_missing. DataError: a row that cannot be
        taken.
        """
        chosen = self._deployed_version(name) if version is None else version
        return chosen, self._model(name, chosen).predict(instances, outputs)

    def _deployed_version(self, name: str) -> int:
        known = self._deployed.get(name)
        if known is not None:
            return known
        generation = self._generation
        version = self._store.get_model(name).production_version
        if version is None:
            call = f'POST /v1/models/{name}/deploy {{"version": ...}}'
            raise ApiError(409, "not_deployed", f"no version of {name} is deployed; {call} deploys one", "name")
        with self._lock:
            if generation == self._generation:  # else it may be out of date already
                self._deployed[name] = version
        return version

    def _model(self, name: str, version: int) -> Model:
        sha256 = self._hashes.get((name, version))
        if sha256 is None:
            sha256 = self._hashes[name, version] = self._store.get_version(name, version).artifact_sha256
        with self._lock:
            if sha256 in self._models:
                self._models.move_to_end(sha256)
                return self._models[sha256]
        model = self._load(sha256)
        with self._lock:
            self._models[sha256] = model
            while len(self._models) > self._kept:
                self._models.popitem(last=False)
        return model

    def _load(self, sha256: str) -> Model:
        try:
            return load_model(self._artifacts / sha256)
        except ModelFileError as error:
            message = f"the model's files are not in the artifact store as they should be: {error}"
            raise ApiError(503, "artifact_missing", message) from error
