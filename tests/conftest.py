"""Small tables, ingested as the service does it, and training plans over them: for tests of whole trainings."""

import csv
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from core.network import NetworkSpec
from core.optimizers import OptimizerSpec
from core.preprocessing import PreprocessingSpec
from core.schedules import ScheduleSpec
from service.embedded import new_token, ray_environment
from service.ingest import ingest
from worker.dataset import DataSpec
from worker.plan import TrainingPlan

MakePlan = Callable[..., TrainingPlan]

# Ray reads its environment, the token included, when it is imported, which any test module may do first. So it is set
# here: this process is a driver of the head that tests/system/test_cluster.py starts.
os.environ |= {name: value for name, value in ray_environment({}, new_token()).items() if name.startswith("RAY_")}

# No deadline: other work on the same machine must not fail a test. The same examples each time: what a landing is
# judged by is not drawn. `make faults` draws others (--hypothesis-profile=drawn).
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("drawn", deadline=None)
settings.load_profile("fixed")


def write_classes(path: Path, rows: int = 203) -> None:
    """Three kinds of points in a plane, a number that says nothing, a text column with gaps, a weight."""
    rng = np.random.default_rng(11)
    kinds = rng.integers(0, 3, rows)
    x, y = np.cos(2.1 * kinds) + rng.normal(0, 0.6, rows), np.sin(2.1 * kinds) + rng.normal(0, 0.6, rows)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["x", "y", "noise", "side", "weight", "kind"])
        for k in range(rows):
            side = "" if k % 19 == 0 else ("left" if x[k] < 0 else "right")
            out.writerow([x[k], y[k], rng.normal(), side, 1 + k % 4, ["ash", "beech", "cedar"][kinds[k]]])


def write_values(path: Path, rows: int = 157) -> None:
    """Two values that depend on three numbers, one of them not linearly."""
    rng = np.random.default_rng(12)
    a, b, c = rng.normal(3, 2, (3, rows))
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["a", "b", "c", "weight", "sum", "bend"])
        for k in range(rows):
            out.writerow([a[k], b[k], c[k], (k % 5) / 2, a[k] + 2 * b[k] - c[k], 40 + a[k] ** 2 + rng.normal()])


TABLES = {
    "classes": (write_classes, PreprocessingSpec(("x", "y", "noise", "side"), ("kind",), "classification")),
    "values": (write_values, PreprocessingSpec(("a", "b", "c"), ("sum", "bend"), "regression")),
}


@pytest.fixture(scope="session")
def make_plan(tmp_path_factory: pytest.TempPathFactory) -> MakePlan:
    """A plan over the table `classes` or `values`; everything else by the names of TrainingPlan's fields.

    `data`: changes of the DataSpec, by name.
    """
    home = tmp_path_factory.mktemp("tables")
    manifests: dict[str, dict[str, Any]] = {}

    def make(table: str = "classes", data: dict[str, Any] | None = None, **changes: Any) -> TrainingPlan:
        write, preprocessing = TABLES[table]
        folder = home / table
        if table not in manifests:
            folder.mkdir()
            write(folder / "upload")
            manifests[table] = ingest(folder, "csv", None)
        spec = DataSpec(
            str(folder),
            manifests[table]["sha256"],
            preprocessing,
            weight_column=None,
            validation=0.2,
            test=0.1,
            split_by="random",
            split_column=None,
            split_seed=0,
            cache_folder=str(home / "prepared"),
        )
        plan = TrainingPlan(
            "job_1",
            replace(spec, **(data or {})),
            NetworkSpec(1, 1, (24, 12), loss="cross_entropy" if table == "classes" else "squared_error"),
            OptimizerSpec("adamw", 0.01, weight_decay=0.01, clip_norm=1.0),
            ScheduleSpec("cosine", 0.1),
            epochs=3,
            batch_size=32,
            shards=3,
            seed=0,
        )
        return replace(plan, **changes)

    return make
