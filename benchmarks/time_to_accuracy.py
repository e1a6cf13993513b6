"""Seconds of training to 97 % and 98 % of MNIST's test rows: two workers of ours, scikit-learn, H2O-3 Deep Learning.

Each trains 784-256-128-10 with ReLU on all 60,000 training rows in a process of its own, one after the other, on two
cores, with the settings its users would take for speed, until 98 % or for LIMIT_S at most. Only training counts:
not starting, not loading, and of ours and scikit-learn's not the evaluation after each epoch. H2O scores while it
trains and counts that itself, which its settings hold to a tenth of the time at most. Run as a module, this file is
such a process.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.contenders import Array
from benchmarks.race import ROOT, THREAD_VARIABLES, Options
from benchmarks.rows import Row
from benchmarks.turns import own_stdout

ACCURACIES, LIMIT_S, GOAL_S = (0.97, 0.98), 120.0, 5.0
TEST_ROWS, WORKERS, BATCH, EPOCHS = 10_000, 2, 384, 4
RATE, WARMUP, MOMENTUM, HIDDEN = 0.35, 0.25, 0.9, (256, 128)
Curve = Iterator[tuple[float, float]]  # seconds of training so far, test accuracy


def ours(images: Array, labels: Array) -> Curve:
    """The steps of examples/mnist.yaml, on two workers through shared memory."""
    from benchmarks.prepared_arrays import write_prepared
    from benchmarks.processes import Processes
    from core.metrics import metrics
    from core.network import NetworkSpec
    from core.optimizers import OptimizerSpec
    from core.schedules import ScheduleSpec
    from worker.crew import Crew
    from worker.plan import StepPlan
    from worker.sampling import Sampling
    from worker.shared_memory import SharedMemoryExchange

    with tempfile.TemporaryDirectory() as folder:
        data = write_prepared(Path(folder) / "data", images, labels, TEST_ROWS)
        sampling = Sampling(data.rows["train"], BATCH, WORKERS, 0)
        network, optimizer = NetworkSpec(784, 10, HIDDEN), OptimizerSpec("sgd", RATE, momentum=MOMENTUM, nesterov=True)
        steps = EPOCHS * sampling.steps_per_epoch
        plan = StepPlan(str(data.folder), network, sampling, optimizer, ScheduleSpec("cosine", WARMUP), steps, 1)
        transport = Processes()
        try:
            crew = Crew(plan, [transport.recruit() for _ in range(WORKERS)], transport, lambda _: None)
            crew.admit(wait=True)
            exchange = SharedMemoryExchange(plan, 0, crew, transport)
            seconds = 0.0
            for _ in range(EPOCHS):
                seconds += _seconds(lambda: exchange.run_steps(sampling.steps_per_epoch))
                yield seconds, metrics(network.loss, exchange.evaluate("test"))["accuracy"]
            exchange.close()
        finally:
            transport.close()


def scikit_learn(images: Array, labels: Array) -> Curve:
    """MLPClassifier with the same optimizer, at a constant rate: it has no cosine. An epoch a call."""
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(
        HIDDEN, solver="sgd", batch_size=128, learning_rate_init=0.1, momentum=MOMENTUM, random_state=0
    )
    classes, seconds = np.arange(10), 0.0
    while True:
        seconds += _seconds(lambda: classifier.partial_fit(images[:-TEST_ROWS], labels[:-TEST_ROWS], classes=classes))
        yield seconds, float(classifier.score(images[-TEST_ROWS:], labels[-TEST_ROWS:]))


def h2o_deep_learning(images: Array, labels: Array) -> Curve:
    """H2ODeepLearningEstimator with its own mini-batch of 1 and adaptive rate; times and accuracies are its own."""
    import h2o
    from h2o.backend import H2OLocalServer
    from h2o.estimators import H2ODeepLearningEstimator

    with tempfile.TemporaryDirectory() as folder:
        server = H2OLocalServer.start(
            nthreads=WORKERS, max_mem_size=4 * 2**30, enable_assertions=False, ice_root=folder, log_dir=folder,
            bind_to_localhost=True, verbose=False,
        )  # fmt: skip
        try:
            h2o.connect(server=server, verbose=False, telemetry=False)
            h2o.no_progress()
            rows = h2o.import_file(str(_csv(Path(folder) / "mnist.csv", images, labels)))
            rows["label"] = rows["label"].asfactor()
            train, test = rows[: len(images) - TEST_ROWS, :], rows[len(images) - TEST_ROWS :, :]
            model = H2ODeepLearningEstimator(
                hidden=list(HIDDEN), activation="rectifier", epochs=1000, max_runtime_secs=LIMIT_S, stopping_rounds=0,
                overwrite_with_best_model=False, score_interval=2, score_duty_cycle=0.1, score_training_samples=1000,
            )  # fmt: skip
            model.train(y="label", training_frame=train, validation_frame=test)
            for row in model.scoring_history().to_dict("records"):
                if row["epochs"] > 0:
                    yield _duration(row["duration"]), 1 - row["validation_classification_error"]
        finally:
            server.shutdown()


CONTENDERS: dict[str, Callable[[Array, Array], Curve]] = {
    "ours, 2 workers": ours,
    "scikit-learn": scikit_learn,
    "H2O-3": h2o_deep_learning,
}


@dataclass(frozen=True)
class Reached:
    """Seconds to each of ACCURACIES that was reached, and the best accuracy; or why there is nothing."""

    seconds: dict[float, float]
    best: float = 0.0
    missing: str = ""


def reached(curve: list[tuple[float, float]]) -> Reached:
    """Of the points within LIMIT_S."""
    points = [(seconds, accuracy) for seconds, accuracy in curve if seconds <= LIMIT_S]
    firsts = {
        wanted: min(seconds for seconds, accuracy in points if accuracy >= wanted)
        for wanted in ACCURACIES
        if any(accuracy >= wanted for _, accuracy in points)
    }
    return Reached(firsts, max((accuracy for _, accuracy in points), default=0.0))


def train(name: str, mnist: str) -> Reached:
    """What the contender did, in its process."""
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(WORKERS))
    command = [sys.executable, "-m", "benchmarks.time_to_accuracy", name, mnist]
    # Not subprocess.run, which kills at an interrupt: the process is to end what it has started.
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        written = process.stdout.read()
        process.wait()  # it has closed its output and not ended yet: with its input it would be told to
    if process.returncode:
        return Reached({}, missing=f"{name} ended with code {process.returncode}")
    answer = json.loads(written)
    if "missing" in answer:
        return Reached({}, missing=answer["missing"])
    return reached([(seconds, accuracy) for seconds, accuracy in answer["curve"]])


def run(options: Options) -> list[Row]:
    """Time to accuracy: ours against the goal, and each peer against ours. Needs MNIST."""
    if options.mnist is None:
        return [Row("MNIST to 98 %, 2 workers", "not measured: give --mnist FOLDER", 0.0, None, "s", None, 1.0, True)]
    found = {name: train(name, options.mnist) for name in CONTENDERS}
    for name, result in found.items():
        print(f"{name}: {result.missing or result}", flush=True)
    mine, *_ = found.values()
    return rows(mine, {name: result for name, result in list(found.items())[1:]})


def rows(mine: Reached, peers: dict[str, Reached]) -> list[Row]:
    """A peer that did not get there counts as LIMIT_S: its true ratio is larger."""
    last = ACCURACIES[-1]
    mark = mine.seconds.get(last)
    state = mine.missing or f"best {mine.best:.2%}"
    goal = f"MNIST to {last:.0%}, 2 workers"
    table = [
        Row(goal, state, LIMIT_S, GOAL_S, "s", None, 1.0, ceiling=True)
        if mark is None
        else Row(goal, state, mark, GOAL_S, "s", mark / GOAL_S, 1.0, ceiling=True)
    ]
    for name, peer in peers.items():
        for wanted in ACCURACIES:
            goal, took = f"MNIST to {wanted:.0%}, their time by ours", mine.seconds.get(wanted)
            if took is None or peer.missing:
                why = peer.missing or f"ours: {state}"
                table.append(Row(goal, f"{name} ({why})", LIMIT_S if took is None else took, None, "s", None, 1.0))
                continue
            theirs = peer.seconds.get(wanted, LIMIT_S)
            case = name if wanted in peer.seconds else f"{name} (not in {LIMIT_S:.0f} s; best {peer.best:.2%})"
            table.append(Row(goal, case, took, theirs, "s", theirs / took, 1.0))
    return table


def main(name: str, mnist: str) -> None:
    """The process of one contender: its curve, until the last of ACCURACIES or LIMIT_S."""
    from examples.mnist_csv import read_mnist

    answer = own_stdout()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ending what it has started
    threading.Thread(target=_follow_parent, daemon=True).start()
    images, labels = read_mnist(Path(mnist))
    curve: list[tuple[float, float]] = []
    points = CONTENDERS[name](images / np.float32(255), labels.astype(np.int64))
    try:
        for point in points:
            curve.append(point)
            if point[0] > LIMIT_S or point[1] >= ACCURACIES[-1]:
                break
    except ImportError as error:
        answer(missing=f"{error.name} is not installed")
        return
    finally:
        points.close()  # type: ignore[attr-defined]  # a generator: it ends what it started
    answer(curve=curve)


def _follow_parent() -> None:
    """The standard input ends with the process that holds its other end."""
    os.read(sys.stdin.fileno(), 1)  # not sys.stdin.read, whose lock an interpreter that ends would wait for
    os.kill(os.getpid(), signal.SIGTERM)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _csv(path: Path, images: Array, labels: Array) -> Path:
    from examples.mnist_csv import write_csv

    write_csv(np.rint(images * 255).astype(np.uint8), labels, path)
    return path


def _duration(text: str) -> float:
    """Seconds of H2O's `1 min 12.345 sec`."""
    units = {"sec": 1.0, "min": 60.0, "hr": 3600.0}
    words = text.split()
    return sum(float(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
