"""Local steps on MNIST: what they spare of the exchanged bytes, and what they cost in accuracy, over five seeds. Beside
them, gradients in half precision.

The network of examples/mnist.yaml by minibatches of 128, in this process: who computes a shard changes no bit of it.
Bytes are those that a shard writes into its slot and reads of the parameters, once a committed step each.
"""

import statistics
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.prepared_arrays import write_prepared
from benchmarks.race import Options
from benchmarks.rows import Row
from core.metrics import metrics
from core.network import NetworkSpec, network_graph, parameter_layout
from core.optimizers import OptimizerSpec
from core.schedules import ScheduleSpec
from examples.mnist_csv import read_mnist
from worker.dataset import PreparedDataset
from worker.exchange import InProcessExchange
from worker.local_steps import in_rounds
from worker.plan import StepPlan
from worker.sampling import Sampling

TEST_ROWS, BATCH, SHARDS, EPOCHS, LOCAL_STEPS, SEEDS = 10_000, 128, 2, 6, 16, range(5)
SGD = OptimizerSpec("sgd", 0.1, momentum=0.9)
ADAM = OptimizerSpec("adamw", 1e-3, weight_decay=0.01, clip_norm=1.0)
GOAL_POINTS, GOAL_BYTES = 0.2, 1 / 15


@dataclass(frozen=True)
class Case:
    """A way to exchange; `outer` None: every step."""

    name: str
    outer: str | None
    optimizer: OptimizerSpec = SGD
    half_gradients: bool = False


SYNC, ADAM_SYNC = Case("sync", None), Case("sync, AdamW 1e-3", None, ADAM)
# Momentum begins each round at zero: a round of 16 steps goes about half as far, and twice the rate makes up for it.
CASES = (
    Case("local, average, learning rate 0.2", "average", replace(SGD, learning_rate=0.2)),
    Case("local, average", "average"),
    Case("local, nesterov", "nesterov"),
    Case("local, nesterov, learning rate 0.02", "nesterov", replace(SGD, learning_rate=0.02)),
)
HALF = Case("sync, half gradients", None, half_gradients=True)
ADAM_CASES = (Case("local, average, AdamW 1e-3", "average", ADAM),)


def step_plan(data: PreparedDataset, case: Case, seed: int) -> StepPlan:
    """The training of `case`."""
    sampling = Sampling(data.rows["train"], BATCH, SHARDS, seed, LOCAL_STEPS if case.outer else 1)
    steps = EPOCHS * sampling.steps_per_epoch
    network, schedule = NetworkSpec(784, 10, (256, 128)), ScheduleSpec("cosine")
    plan = StepPlan(
        str(data.folder), network, sampling, case.optimizer, schedule, steps, 1, half_gradients=case.half_gradients
    )
    return plan if case.outer is None else in_rounds(plan, case.outer)


def accuracy(data: PreparedDataset, case: Case, seed: int) -> float:
    """The share of the test rows that are right after the last step."""
    plan = step_plan(data, case, seed)
    with closing(InProcessExchange(plan, seed)) as exchange:
        for _ in range(EPOCHS):
            exchange.run_steps(plan.sampling.steps_per_epoch)
        return metrics(plan.network.loss, exchange.evaluate("test"))["accuracy"]


def exchanged_bytes(data: PreparedDataset, case: Case) -> int:
    """In an epoch."""
    plan = step_plan(data, case, 0)
    size = parameter_layout(network_graph(plan.network)).size * np.dtype(plan.network.dtype).itemsize
    return 2 * SHARDS * size * plan.sampling.steps_per_epoch


def run(_results: Path, options: Options) -> list[Row]:
    """The rows: points of accuracy lost, and the part of the bytes."""
    goal, case = "local steps on MNIST", f"{LOCAL_STEPS} steps a round, {SHARDS} shards, {len(SEEDS)} seeds"
    if options.mnist is None:
        return [Row(goal, f"{case}: --mnist FOLDER is missing", 0.0, None, "points", None, GOAL_POINTS, ceiling=True)]
    images, labels = read_mnist(Path(options.mnist))
    with tempfile.TemporaryDirectory() as folder:
        scaled = images / np.float32(255)
        data = write_prepared(Path(folder) / "data", scaled, labels.astype(np.int64), TEST_ROWS)
        groups = (SYNC, (HALF, *CASES)), (ADAM_SYNC, ADAM_CASES)
        return [row for sync, cases in groups for row in _rows(data, sync, cases)]


def _rows(data: PreparedDataset, sync: Case, cases: tuple[Case, ...]) -> list[Row]:
    means = {}
    for case in (sync, *cases):
        found = [100 * accuracy(data, case, seed) for seed in SEEDS]
        means[case] = statistics.mean(found)
        each = " ".join(f"{value:.2f}" for value in found)
        print(f"{case.name}: test accuracy {each}, mean {means[case]:.3f}", flush=True)
    table, goal = [], "local steps on MNIST"
    for case in cases:
        lost, name = means[sync] - means[case], f"{case.name} beside sync, {LOCAL_STEPS} steps a round"
        table.append(Row(goal, f"{name}: points lost", means[case], means[sync], "%", lost, GOAL_POINTS, ceiling=True))
        if case.outer is None:
            continue
        ours, theirs = exchanged_bytes(data, case), exchanged_bytes(data, sync)
        megabytes = f"{name}: exchanged in an epoch"
        table.append(Row(goal, megabytes, ours / 1e6, theirs / 1e6, "MB", ours / theirs, GOAL_BYTES, ceiling=True))
    return table
