"""Contenders side by side: each in a process of its own, one at a time, taking turns.

Separate processes, because libraries bring thread pools and OpenMP runtimes that disturb each other in one. While one
runs the others wait for a line on their standard input: turns.py is such a process.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmarks.contenders import Array, Case

ROOT = Path(__file__).resolve().parents[1]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Options:
    """How long to measure, by which clock, and on what.

    `clock`: wall, or process, the processor time of the contender, which other work on the machine does not add to and
    which means nothing for several threads. `mnist`: the folder of its files, or None for made-up rows.
    """

    rounds: int = 7
    seconds: float = 0.3
    clock: str = "wall"
    mnist: str | None = None


CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


@dataclass
class Result:
    """What a contender did in each round, examples/s; or why it is not there."""

    name: str
    rates: list[float] = field(default_factory=list)
    missing: str = ""

    @property
    def rate(self) -> float:
        """The median examples/s."""
        return statistics.median(self.rates)

    def ratio(self, peer: "Result") -> float:
        """The median over the rounds of this contender's rate by the peer's in the same round."""
        return statistics.median(a / b for a, b in zip(self.rates, peer.rates, strict=True))


class Process:
    """A contender in its process."""

    def __init__(self, name: str, case: Case, options: Options) -> None:
        self.result = Result(name)
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(case.threads))
        task = json.dumps({"name": name, "case": asdict(case), "options": asdict(options)})
        command = [sys.executable, "-m", "benchmarks.turns", task]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        ready = self._hear()
        self.result.missing, self.steps = ready.get("missing", ""), int(ready.get("steps", 0))  # steps of a turn

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def turn(self) -> None:
        """Let it run for its slice of time."""
        if not self.result.missing:
            assert self._process.stdin is not None
            self._process.stdin.write("run\n")
            self._process.stdin.flush()
            answer = self._hear()
            if "missing" in answer:
                self.result.missing = answer["missing"]
            else:
                self.result.rates.append(answer["examples"] / answer["seconds"])

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"missing": f"{self.result.name} ended with code {self._process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer


def race(entries: Sequence[tuple[str, Case]], options: Options) -> list[Result]:
    """The entries' results, in their order, after rounds that go forwards and backwards through them in turn."""
    processes = [Process(name, case, options) for name, case in entries]
    for turn in range(options.rounds):
        for process in processes if turn % 2 == 0 else reversed(processes):
            process.turn()
    for process in processes:
        with process:
            pass
    return [process.result for process in processes]


def rows_for(case: Case, mnist: str | None) -> tuple[Array, Array]:
    """Features and targets, whole minibatches of them: MNIST's from the folder `mnist`, or rows of its statistics."""
    count = 20480 if max(case.sizes[1:]) < 1000 else 4096
    rng = np.random.default_rng(1)
    if mnist and case.sizes[0] == 784:
        from examples.mnist_csv import read_mnist

        images, labels = read_mnist(Path(mnist))
        return images[:count] / np.float32(255), labels[:count].astype(np.int64)
    # In MNIST 19 % of the pixels are inked, by 0.7 on average.
    ink = rng.random((2, count, case.sizes[0]), np.float32)
    features: Array = np.where(ink[0] < 0.19, 0.4 + 0.6 * ink[1], np.float32(0))
    return features, rng.integers(0, case.sizes[-1], count)
