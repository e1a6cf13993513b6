"""What a trainer reports, in the store's shapes, and back. Pure."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from service.records import EventRecord, Json, NewEvent
from worker.plan import MetricPoint, Progress, TrainerEvent, TrainerReport, TrainingFailure, TrainingResult

NewPoint = tuple[str, int, float, float]


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON can hold them."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def progress_of(report: TrainerReport) -> Json:
    """The job's `progress`. What is left of one that is trained is to store its network and to register it."""
    trained = {"phase": "registering", "eta_seconds": None} if report.outcome == "succeeded" else {}
    return asdict(report.progress) | trained


def starting(workers: int, epochs: int, steps: int) -> Json:
    """The job's `progress` before its trainer has said anything."""
    return asdict(Progress("preparing", 0, epochs, 0, steps, 0.0, None, workers))


def points_of(report: TrainerReport) -> list[NewPoint]:
    """The metric points among the report's updates."""
    return [(u.series, u.step, u.value, u.timestamp) for u in report.updates if isinstance(u, MetricPoint)]


def events_of(report: TrainerReport) -> list[NewEvent]:
    """The events among the report's updates, each with its number, so that a later controller knows what it has."""
    return [
        NewEvent(u.type, u.level, u.message, {**u.data, "attempt": report.attempt, "update": report.first + place})
        for place, u in enumerate(report.updates)
        if isinstance(u, TrainerEvent)
    ]


def last_update(events: Iterable[EventRecord], attempt: int) -> int:
    """The number of the last update of that attempt that is among the events; 0: none is.

    Points that are sent again do no harm (the first write wins); events would be there twice.
    """
    return max((e.data["update"] for e in events if e.data.get("attempt") == attempt and "update" in e.data), default=0)


def last_number(report: TrainerReport) -> int:
    """The number up to which the trainer has been heard with this report."""
    return report.first + len(report.updates) - 1


def metric_event(report: TrainerReport) -> NewEvent:
    """Where training stands, for those who watch the events."""
    progress, metrics = report.progress, finite(report.metrics)
    figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if value is not None)
    message = f"epoch {progress.epoch} of {progress.epochs}, step {progress.step}: {figures}"
    return NewEvent("metric", "info", message, {"epoch": progress.epoch, "step": progress.step, "metrics": metrics})


def result_of(result: TrainingResult) -> Json:
    """The job's `result`."""
    left_out = {"files", "metrics", "signature", "input_example"}
    return {name: value for name, value in vars(result).items() if name not in left_out}


def model_metadata_of(result: TrainingResult) -> Json:
    """What registering the model takes, beside its files."""
    return {"signature": result.signature, "input_example": result.input_example, "step": result.steps}


def error_of(failure: TrainingFailure) -> Json:
    """The job's `error`."""
    return {"code": failure.code, "message": failure.message, **failure.details}
