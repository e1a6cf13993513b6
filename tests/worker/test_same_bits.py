"""One hash a job on real tables: scikit-learn's digits, and MNIST where MNIST_FOLDER names the folder of its files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from benchmarks.prepared_arrays import write_prepared
from benchmarks.processes import Processes
from core.network import NetworkSpec
from core.optimizers import OptimizerSpec
from core.parameters import weights_sha256
from core.schedules import ScheduleSpec
from examples.mnist_csv import read_mnist
from worker import futex
from worker.crew import Crew
from worker.exchange import InProcessExchange
from worker.plan import StepPlan
from worker.sampling import Sampling
from worker.shared_memory import SharedMemoryExchange

pytestmark = pytest.mark.skipif(not futex.SUPPORTED, reason="words in shared memory need x86-64 Linux (worker.futex)")
MNIST_FOLDER = os.environ.get("MNIST_FOLDER")
SEED, STEPS, BATCH, SHARDS = 3, 30, 128, 8
TRAININGS: dict[str, tuple[OptimizerSpec, dict[str, Any]]] = {
    "sgd": (OptimizerSpec("sgd", 0.1), {}),
    "momentum": (OptimizerSpec("sgd", 0.05, momentum=0.9), {}),
    "adam": (OptimizerSpec("adam", 1e-3, clip_norm=1.0), {}),
    "dropout": (OptimizerSpec("adamw", 1e-3, weight_decay=0.01), {"dropout": 0.3}),
    "layer norm": (OptimizerSpec("sgd", 0.05, momentum=0.9), {"layer_norm": True}),
}


def digits() -> tuple[np.ndarray, np.ndarray]:
    table = load_digits()
    return table.data.astype(np.float32) / 16, table.target


def mnist() -> tuple[np.ndarray, np.ndarray]:
    assert MNIST_FOLDER is not None
    images, labels = read_mnist(Path(MNIST_FOLDER))
    return images[:20_000] / np.float32(255), labels[:20_000]


TABLES = [
    pytest.param(digits, id="digits"),
    pytest.param(
        mnist, id="mnist", marks=pytest.mark.skipif(MNIST_FOLDER is None, reason="MNIST_FOLDER names no folder")
    ),
]


@pytest.fixture(scope="module", params=TABLES)
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    """The prepared table's folder, its rows and its features."""
    features, targets = request.param()
    folder = tmp_path_factory.mktemp("table") / "prepared"
    write_prepared(folder, features, targets)
    return folder, *features.shape


@contextmanager
def shared(plan: StepPlan, workers: int, claiming: bool) -> Iterator[SharedMemoryExchange]:
    """Over real processes."""
    transport = Processes()
    crew = Crew(plan, [transport.recruit() for _ in range(workers)], transport, lambda _: None)
    crew.admit(wait=True)
    exchange = SharedMemoryExchange(plan, SEED, crew, transport, claiming=claiming)
    try:
        yield exchange
    finally:
        exchange.close()
        transport.close()


@pytest.mark.parametrize("training", TRAININGS)
def test_a_table_is_learnt_to_the_same_bits_by_anybody(table: tuple[Path, int, int], training: str) -> None:
    folder, rows, width = table
    optimizer, extras = TRAININGS[training]
    network = NetworkSpec(width, 10, (64, 32), **extras)
    plan = StepPlan(
        str(folder), network, Sampling(rows, BATCH, SHARDS, SEED), optimizer, ScheduleSpec("cosine"), STEPS, 1
    )
    alone = InProcessExchange(plan, SEED)
    losses = [report.loss for report in alone.run_steps(STEPS)]
    wanted = weights_sha256(alone.parameters())
    alone.close()
    assert losses[-1] < losses[0]

    for workers in (1, 2, 3, 5, 8):
        for claiming in (True, False):
            with shared(plan, workers, claiming) as exchange:
                assert [report.loss for report in exchange.run_steps(STEPS)] == losses
                assert weights_sha256(exchange.parameters()) == wanted, (workers, claiming)
    with shared(plan, 4, claiming=True) as exchange:
        for scaled in (1, 6):
            exchange.run_steps(STEPS // 3)
            exchange.scale(scaled)
        exchange.run_steps(STEPS - 2 * (STEPS // 3))
        assert weights_sha256(exchange.parameters()) == wanted, "scaled 4 -> 1 -> 6"
