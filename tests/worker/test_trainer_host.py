"""How a training ends, as its controller gets to know."""

import errno
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import Processes
from core.errors import DataError
from core.optimizers import OptimizerSpec
from worker.aggregator import ParameterAggregator
from worker.checkpoint_store import CheckpointStore
from worker.dataset import DatasetError
from worker.errors import Diverged, RemoteLost, TooManyFailures
from worker.exchange import InProcessExchange
from worker.plan import TrainerEvent, TrainerReport, TrainingPlan
from worker.pool import Crew
from worker.recorder import Recorder
from worker.trainer import OpenExchange, Trainer
from worker.trainer_host import AUTO, DIVERGENCE_HINT, OBJECTS, Run, TrainerHost, failure_of
from worker.wiring import Place

MakePlan = Callable[..., TrainingPlan]


def in_process(recorder: Recorder, look: Callable[[], None]) -> OpenExchange:
    return InProcessExchange


def unexpected() -> None:
    raise AssertionError("abandoned")


def started(plan: TrainingPlan, **changes: Any) -> Run:
    arguments = {"open_exchange": in_process, "orphan_seconds": 60.0, "abandoned": unexpected, **changes}
    return Run(plan, attempt=3, workers=1, **arguments)


def ended(run: Run) -> TrainerReport:
    """The first report with an outcome."""
    deadline = time.monotonic() + 60
    while (report := run.poll(0)).outcome is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return report


def beyond(run: Run, step: int) -> None:
    """Returns once it has come further than `step`."""
    deadline = time.monotonic() + 60
    while run.poll(0).progress.step <= step:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_success_comes_with_the_result_and_all_that_was_said(make_plan: MakePlan) -> None:
    report = ended(started(make_plan()))
    assert (report.job_id, report.attempt, report.outcome, report.failure) == ("job_1", 3, "succeeded", None)
    assert report.result is not None
    looks = 3 * (3 * 5 + 6)  # a layer has five figures, and its weights and biases an update ratio each
    assert (report.first, len(report.updates)) == (1, 2 * 15 + 2 * 3 + looks + 2)  # losses, rates, validation, test
    assert report.metrics["test_accuracy"] == report.result.metrics["test_accuracy"]
    assert report.progress.phase == "evaluating"


def test_what_was_acknowledged_is_not_said_again(make_plan: MakePlan) -> None:
    run = started(make_plan())
    said = len(ended(run).updates)
    report = run.poll(said - 1)
    assert (report.first, len(report.updates)) == (said, 1)


def test_divergence_names_step_and_shard_and_what_to_do(make_plan: MakePlan) -> None:
    report = ended(started(make_plan(optimizer=OptimizerSpec("sgd", 1e6))))
    assert (report.outcome, report.result) == ("failed", None)
    failure = report.failure
    assert failure is not None
    assert failure.code == "diverged"
    step, shard = failure.details["step"], failure.details["shard"]
    assert 1 < step <= 15
    assert shard in (0, 1, 2)
    assert failure.details["last_good_step"] == step - 1
    assert failure.details["hint"] == DIVERGENCE_HINT
    assert failure.message.startswith(f"step {step}: the ")
    assert f"shard {shard} is not finite; lower optimizer.learning_rate" in failure.message


def test_cancelled(make_plan: MakePlan) -> None:
    run = started(make_plan(epochs=1_000_000))
    run.cancel()
    report = ended(run)
    assert (report.outcome, report.result, report.failure) == ("cancelled", None, None)


def test_paused_it_leaves_a_checkpoint_from_which_another_goes_on(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(epochs=2000, checkpoint_folder=str(tmp_path / "checkpoints"))
    run = started(plan)
    beyond(run, 20)
    run.pause()
    report = ended(run)
    assert (report.outcome, report.result, report.failure) == ("paused", None, None)
    (kept,) = CheckpointStore(tmp_path / "checkpoints").list()
    assert (kept.step, kept.attempt) == (report.progress.step, 3)
    again = started(plan)
    beyond(again, kept.step)
    again.cancel()
    assert f"goes on from the checkpoint of step {kept.step}" in str(ended(again).updates)


def test_asked_to_save_it_does_so_and_goes_on(make_plan: MakePlan, tmp_path: Path) -> None:
    run = started(make_plan(epochs=2000, checkpoint_folder=str(tmp_path / "checkpoints")))
    beyond(run, 20)
    run.save(60.0)
    (kept,) = CheckpointStore(tmp_path / "checkpoints").list()
    assert kept.step > 20
    beyond(run, kept.step)
    run.cancel()
    assert ended(run).outcome == "cancelled"
    run.save(60.0)  # nothing is left to save: returns at once
    assert len(CheckpointStore(tmp_path / "checkpoints").list()) == 1


def test_a_table_that_is_gone(make_plan: MakePlan) -> None:
    gone = {"dataset_folder": "/nowhere", "dataset_sha256": "e" * 64}
    report = ended(started(make_plan(data=gone)))
    assert report.outcome == "failed"
    assert report.failure is not None
    assert report.failure.code == "invalid_dataset"
    assert "/nowhere" in report.failure.message


def lost(recorder: Recorder, look: Callable[[], None]) -> OpenExchange:
    def opened(*_: Any) -> Any:
        raise RemoteLost("aggregator")

    return opened


@pytest.mark.parametrize("how", [{"orphan_seconds": 0.0}, {"open_exchange": lost}], ids=str)
def test_one_without_anybody_left_is_abandoned_without_an_outcome(make_plan: MakePlan, how: dict[str, Any]) -> None:
    abandoned = threading.Event()
    run = started(make_plan(), abandoned=abandoned.set, **how)
    assert abandoned.wait(60)
    assert run.poll(0).outcome is None


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (Diverged(7, None, "loss"), "diverged", {"step": 7, "shard": None, "last_good_step": 6}),
        (TooManyFailures(31, 60.0), "worker_failures", {"failures": 31}),
        (DatasetError("/x", "damaged"), "invalid_dataset", {}),
        (DataError(3, "city", "?", "a number"), "invalid_dataset", {}),
        (MemoryError(), "out_of_memory", {}),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failures_have_codes(error: Exception, code: str, details: dict[str, Any]) -> None:
    failure = failure_of(error)
    assert failure.code == code
    assert failure.message
    assert details.items() <= failure.details.items()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "secret path"), ZeroDivisionError("secret")], ids=str)
def test_the_unforeseen_gets_a_number_that_the_log_carries(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        failure = failure_of(error)
    assert failure.code == "internal"
    assert "secret" not in failure.message
    assert failure.details["id"] in failure.message
    assert failure.details["id"] in caplog.text
    assert "secret" in caplog.text


def test_a_host_runs_one_job_after_the_other(make_plan: MakePlan, site: Any, plan: Any) -> None:
    """Over object references in memory: as many workers as the crew has, and each free again at the end."""
    place = site(plan, 2)
    processes = {remote.name: remote for remote in (*place.workers, place.aggregator)}
    connection = place.transport
    connection.remote, connection.forget_leavers = processes.__getitem__, lambda: None
    host = TrainerHost(lambda crew, workers: connection, lambda name: unexpected())
    assert (host.poll(0), host.describe()) == (None, None)
    for attempt in (1, 2):
        crew = Crew("TrainerHost-1", ("aggregator0",), ("w0", "w1"))
        host.start(make_plan(), attempt, crew, 2, 60.0, OBJECTS)
        assert host.describe() == ("job_1", attempt, crew)
        deadline = time.monotonic() + 60
        while (report := host.poll(0)) is None or report[0].outcome is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        assert (report[0].outcome, report[0].attempt, report[1]) == ("succeeded", attempt, ("w0", "w1"))
        assert [worker.calls[-1] for worker in place.workers] == ["detach", "detach"]
        host.reset()
        assert host.poll(0) is None


class Deaf(ParameterAggregator):
    """Says that it listens where nobody does: a port that is closed."""

    def listen(self, host: str) -> Place:
        return replace(super().listen(host), port=1)


@pytest.mark.parametrize("aggregator", [ParameterAggregator, Deaf])
def test_where_links_are_refused_gradients_travel_by_object_references(make_plan: MakePlan, aggregator: type) -> None:
    plan = make_plan(optimizer=OptimizerSpec("sgd", 0.05, max_norm=1.0))  # it goes over no shared memory
    wanted = Trainer(plan, Recorder(1), InProcessExchange).run()
    processes = Processes()
    workers = [processes.recruit().name for _ in range(2)]
    crew = Crew("TrainerHost-1", (processes.recruit(aggregator).name,), tuple(workers))
    host = TrainerHost(lambda crew, workers: processes, lambda name: unexpected())
    host.start(plan, 1, crew, 2, 60.0, AUTO)
    deadline = time.monotonic() + 60
    while (report := host.poll(0)) is None or report[0].outcome is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    processes.close()
    assert report[0].result is not None, report[0].failure
    assert report[0].result.weights_sha256 == wanted.weights_sha256
    said = [update for update in report[0].updates if isinstance(update, TrainerEvent)]
    if aggregator is ParameterAggregator:
        assert said == []
    else:
        (event,) = said
        assert (event.type, event.level, event.data["peer"]) == ("log", "warning", "aggregator 0 at 127.0.0.1:1")
        assert "through Ray's object store" in event.message
