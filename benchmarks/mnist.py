"""MNIST through the service: from a submission to a registered network of 98 % test accuracy, over five seeds.

Usage: python -m benchmarks mnist --mnist FOLDER     (starts a service of its own in a temporary home)
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.race import Options
from benchmarks.rows import Row
from examples.mnist_csv import main as write_mnist
from service.client import FallLine
from service.local_service import LocalService

ROOT = Path(__file__).resolve().parents[1]
SEEDS = range(5)
GOAL_ACCURACY, GOAL_S = 0.98, 5.0


def spec_of(name: str) -> dict[str, Any]:
    """The spec of that name in examples/."""
    found: dict[str, Any] = YAML(typ="safe", pure=True).load(ROOT / "examples" / f"{name}.yaml")
    return found


def train(client: FallLine, spec: dict[str, Any], seed: int) -> tuple[float, float]:
    """Test accuracy, and seconds from the submission to the registered network."""
    training = spec["training"] | {"seed": seed}
    job = client.jobs.wait(client.jobs.submit(spec | {"training": training})["id"])
    if job["status"] != "succeeded":
        raise RuntimeError(f"seed {seed}: {job['status']}: {job['error']}")
    return job["metrics"]["test_accuracy"], job["finished_at"] - job["created_at"]


def run(_results: Path, options: Options) -> list[Row]:
    """The rows: the accuracy of the worst seed, the seconds of the median one."""
    goal, case = "MNIST by REST, tracking on", "2 workers, 5 seeds"
    if options.mnist is None:
        return [Row(goal, f"{case}: --mnist FOLDER is missing", 0.0, None, "s", None, 1.0, ceiling=True)]
    with tempfile.TemporaryDirectory() as folder, LocalService() as service, FallLine(service.url) as client:
        table = Path(folder) / "mnist.csv"
        write_mnist([options.mnist, str(table)])
        service.wait_until_ready()
        client.datasets.upload(table, name="mnist")
        spec = spec_of("mnist")
        train(client, spec, len(SEEDS))  # prepares the dataset, warms the pool
        found = [train(client, spec, seed) for seed in SEEDS]
    for seed, (accuracy, seconds) in zip(SEEDS, found, strict=True):
        print(f"seed {seed}: test accuracy {accuracy:.4f}, {seconds:.2f} s from submission to registration", flush=True)
    worst, median = min(accuracy for accuracy, _ in found), statistics.median(seconds for _, seconds in found)
    return [
        Row(goal, f"{case}, test accuracy of the worst", worst, GOAL_ACCURACY, "", worst / GOAL_ACCURACY, 1.0),
        Row(goal, f"{case}, median time", median, GOAL_S, "s", median / GOAL_S, 1.0, ceiling=True),
    ]
