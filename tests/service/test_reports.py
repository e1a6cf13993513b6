"""What trainers report, in the store's shapes."""

import math
from typing import Any

from service import reports
from service.records import EventRecord
from worker.plan import MetricPoint, Progress, TrainerEvent, TrainerReport, TrainingFailure, TrainingResult

UPDATES = (
    MetricPoint("train_loss", 4, 0.5, 10.0),
    TrainerEvent("fault", "warning", "lost a worker", {"step": 4}, 11.0),
    MetricPoint("validation_loss", 4, math.inf, 12.0),
)


def report(first: int = 7, **changes: Any) -> TrainerReport:
    fields: dict[str, Any] = {
        "job_id": "job_1",
        "attempt": 3,
        "progress": Progress("training", 1, 10, 4, 40, 1000.0, None, 2),
        "metrics": {"train_loss": 0.5, "validation_loss": math.inf},
        "first": first,
        "updates": UPDATES,
        "outcome": None,
        "result": None,
        "failure": None,
    }
    return TrainerReport(**{**fields, **changes})


def stored(events: list[Any]) -> list[EventRecord]:
    return [EventRecord("job_1", n, e.type, 0.0, e.level, e.message, e.data) for n, e in enumerate(events, start=1)]


def test_updates_are_sorted_out_and_counted() -> None:
    assert reports.points_of(report()) == [("train_loss", 4, 0.5, 10.0), ("validation_loss", 4, math.inf, 12.0)]
    (event,) = reports.events_of(report())
    assert (event.type, event.level, event.message) == ("fault", "warning", "lost a worker")
    assert event.data == {"step": 4, "attempt": 3, "update": 8}
    assert reports.last_number(report()) == 9
    assert reports.last_number(report(updates=())) == 6


def test_a_later_controller_knows_which_events_are_written() -> None:
    events = stored(reports.events_of(report()))
    assert reports.last_update(events, attempt=3) == 8
    assert reports.last_update(events, attempt=4) == 0
    assert reports.last_update([], attempt=3) == 0


def test_json_gets_no_infinity() -> None:
    assert reports.finite({"a": math.nan, "b": -math.inf, "c": 0.0}) == {"a": None, "b": None, "c": 0.0}
    event = reports.metric_event(report())
    assert event.message == "epoch 1 of 10, step 4: train_loss 0.5"
    assert event.data["metrics"] == {"train_loss": 0.5, "validation_loss": None}


def test_progress_has_the_contracts_fields() -> None:
    expected = {"phase", "epoch", "epochs", "step", "steps", "examples_per_second", "eta_seconds", "workers"}
    assert reports.progress_of(report()).keys() == expected
    assert reports.starting(2, 10, 40).keys() == expected


def test_the_result_goes_without_the_models_files() -> None:
    result = TrainingResult(
        "ab", "cd", "np", 5, 40, 10, 0, 8, None, {"validation_loss": 0.1}, {"inputs": []}, [], {"m": b""}
    )
    assert reports.result_of(result) == {
        "weights_sha256": "ab",
        "model_sha256": "cd",
        "numerics": "np",
        "parameters": 5,
        "steps": 40,
        "epochs": 10,
        "worker_failures": 0,
        "best_epoch": 8,
        "stopped_early": None,
    }
    assert reports.model_metadata_of(result) == {"signature": {"inputs": []}, "input_example": [], "step": 40}


def test_a_failure_keeps_its_details() -> None:
    failure = TrainingFailure("diverged", "not finite", {"step": 3, "hint": "lower it"})
    assert reports.error_of(failure) == {"code": "diverged", "message": "not finite", "step": 3, "hint": "lower it"}
