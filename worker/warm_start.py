"""What a job starts from: a copy of another one's model, kept in the job's own folder until the job is deleted.

So nothing that happens to the source after the job was acknowledged, its deletion included, can take the weights away.
The copy is a model folder (core.model_file); where it lies decides nothing, what is in it is told by hash.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from core.errors import ModelFileError
from core.model_file import Model, load_model, save_model
from core.preprocessing import Preprocessing
from worker.durable import make_durably
from worker.errors import WarmStartDamaged

FOLDER = "warm-start"  # beside the job's checkpoints


@dataclass(frozen=True)
class Kept:
    """A part of the model in `folder`: weights or preprocessing, known by its SHA-256."""

    folder: str
    sha256: str


def keep(folder: Path, model: Model) -> None:
    """Write `model` into `folder`, which is made; it is on the disk when this returns. Raises OSError."""
    make_durably(folder)
    save_model(folder, model)


def kept_weights(kept: Kept) -> NDArray[Any]:
    """The flat parameters (P,), read-only, in the network's dtype. Raises WarmStartDamaged."""
    model = _load(kept)
    _check(kept, model.weights_sha256)
    return model.parameters


def kept_preprocessing(kept: Kept) -> Preprocessing:
    """The fitted preprocessing. Raises WarmStartDamaged."""
    found = _load(kept).preprocessing
    _check(kept, preprocessing_sha256(found))
    return found


def preprocessing_sha256(fitted: Preprocessing) -> str:
    """64 hex digits: equal for preprocessings that make the same numbers of the same rows."""
    return hashlib.sha256(json.dumps(fitted.to_json(), sort_keys=True).encode()).hexdigest()


def _load(kept: Kept) -> Model:
    try:
        return load_model(kept.folder)
    except ModelFileError as error:
        raise WarmStartDamaged(kept.folder, str(error)) from error


def _check(kept: Kept, sha256: str) -> None:
    if sha256 != kept.sha256:
        raise WarmStartDamaged(kept.folder, f"its hash is {sha256}, not {kept.sha256}")
