"""The exchange between two workers: steps together, beside the same two workers that never communicate.

Usage: python -m benchmarks distribution

784-256-128-10, ReLU, softmax cross-entropy, plain SGD, float32; two processes with one BLAS thread each, one shard a
worker, rows of MNIST's shape. The contenders alternate; figures are medians.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.processes import Processes
from benchmarks.race import Options
from benchmarks.rows import Row
from core.network import NetworkSpec
from core.optimizers import OptimizerSpec
from core.preprocessing import PreprocessingSpec
from core.schedules import ScheduleSpec
from worker.crew import Crew
from worker.dataset import DataSpec, PreparedDataset, prepare
from worker.exchange import InProcessExchange
from worker.plan import StepPlan
from worker.sampling import Sampling
from worker.shared_memory import SharedMemoryExchange

ROWS, WORKERS, WARM_STEPS = 20_000, 2, 20
TARGETS = {32: 0.75, 128: 0.90, 1024: 0.95}


class Apart:
    """A worker that trains alone, on its own parameters."""

    def begin(self, plan: StepPlan) -> None:
        """Plan and warm up."""
        self._exchange = InProcessExchange(plan, 0)
        self._exchange.run_steps(WARM_STEPS)

    def run(self, steps: int) -> float:
        """Seconds that `steps` took."""
        began = time.perf_counter()
        self._exchange.run_steps(steps)
        return time.perf_counter() - began


def mnist_like(folder: Path) -> PreparedDataset:
    """A prepared dataset of MNIST's shape: 784 sparse pixels, ten classes."""
    rng = np.random.default_rng(0)
    table = folder / "table"
    (table / "columns").mkdir(parents=True)
    columns = []
    for number in range(785):
        is_label = number == 784
        values = rng.integers(0, 10, ROWS) if is_label else rng.random(ROWS) * (rng.random(ROWS) < 0.2)
        name = "label" if is_label else f"p{number}"
        file = f"columns/c{number}.npy"
        np.save(table / file, values.astype(np.float64))
        kind = "integer" if is_label else "number"
        columns.append({"name": name, "type": kind, "missing": 0, "distinct": 10, "file": file})
    manifest = {"format": 1, "rows": ROWS, "bytes": 0, "sha256": "0" * 64, "columns": columns}
    (table / "dataset.json").write_text(json.dumps(manifest))
    features = tuple(f"p{number}" for number in range(784))
    treatment = PreprocessingSpec(features, ("label",), "classification", numeric="none")
    return prepare(
        DataSpec(str(table), "0" * 64, treatment, None, 0.0, 0.0, "random", None, 0, str(folder / "prepared"))
    )


def step_plan(data: PreparedDataset, batch: int, shards: int) -> StepPlan:
    """Steps of `batch` rows over `shards`."""
    sampling = Sampling(data.rows["train"], batch, shards, 0)
    network = NetworkSpec(784, 10, (256, 128))
    return StepPlan(str(data.folder), network, sampling, OptimizerSpec("sgd", 0.1), ScheduleSpec("constant"), 10**6, 1)


def race(data: PreparedDataset, batch: int, shards: int, options: Options) -> tuple[float, float]:
    """Examples a second (together, apart), medians of alternating turns."""
    plan = step_plan(data, batch, shards)
    alone = step_plan(data, batch // WORKERS, max(shards // WORKERS, 1))
    together, apart = Processes(), Processes(Apart)
    try:
        crew = Crew(plan, [together.recruit() for _ in range(WORKERS)], together, lambda _: None)
        crew.admit(wait=True)
        exchange = SharedMemoryExchange(plan, 0, crew, together)
        exchange.run_steps(WARM_STEPS)
        loners = [apart.recruit() for _ in range(WORKERS)]
        apart.get([worker.call("begin", alone) for worker in loners])

        def run_together(steps: int) -> float:
            began = time.perf_counter()
            exchange.run_steps(steps)
            return time.perf_counter() - began

        def run_apart(steps: int) -> float:
            return max(apart.get([worker.call("run", steps) for worker in loners]))

        contenders: list[Callable[[int], float]] = [run_together, run_apart]
        steps = [max(8, round(options.seconds * 20 / run(20))) for run in contenders]
        turns: list[list[float]] = [[], []]
        for _ in range(options.rounds):
            for place, run in enumerate(contenders):
                turns[place].append(steps[place] * batch / run(steps[place]))
        exchange.close()
        return statistics.median(turns[0]), statistics.median(turns[1])
    finally:
        together.close()
        apart.close()


def run(_results: Path, options: Options) -> list[Row]:
    """A row for each batch, at one shard a worker and at eight shards."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = mnist_like(Path(folder))
        for shards in (WORKERS, 8):
            for batch, target in TARGETS.items():
                ours, theirs = race(data, batch, shards, options)
                case = f"2 workers, batch {batch}, {shards} shards, beside 2 that never communicate"
                rows.append(Row("distribution", case, ours, theirs, "examples/s", ours / theirs, target))
    return rows
