"""What a trainer has to say, kept until it has been heard: points, events, progress. Two threads meet here."""

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from worker.diagnosis import points
from worker.plan import MetricPoint, Progress, StepReport, TrainerEvent

Update = MetricPoint | TrainerEvent


class Recorder:
    """Written by the thread that trains, read by the one that answers polls."""

    def __init__(self, workers: int) -> None:
        self._lock = threading.Lock()
        self._updates: list[Update] = []
        self._first = 1
        self._latest: dict[str, float] = {}
        self._progress = Progress("preparing", 0, 0, 0, 0, 0.0, None, workers)
        self.heard_at = time.monotonic()

    def point(self, series: str, step: int, value: float) -> None:
        """A point of a series, measured now."""
        with self._lock:
            self._updates.append(MetricPoint(series, step, value, time.time()))
            self._latest[series] = value

    def diagnostics(self, step: int, found: Mapping[str, float]) -> None:
        """A look inside the network, as points. Not among the latest values: those are few, for people to read."""
        now = time.time()
        with self._lock:
            self._updates += [MetricPoint(name, step, value, now) for name, value in points(found).items()]

    def unheard(self) -> tuple[tuple[MetricPoint, ...], dict[str, float]]:
        """The points that nobody has acknowledged yet, and the latest value of each series: for a checkpoint."""
        with self._lock:
            return tuple(each for each in self._updates if isinstance(each, MetricPoint)), dict(self._latest)

    def say_again(self, points: Iterable[MetricPoint], latest: Mapping[str, float]) -> None:
        """What `unheard` gave to a checkpoint that training goes on from."""
        with self._lock:
            self._updates += points
            self._latest = dict(latest)

    def event(self, event: TrainerEvent) -> None:
        """Something for the job's events."""
        with self._lock:
            self._updates.append(event)

    def progress(self, **changes: object) -> None:
        """Change fields of the progress."""
        with self._lock:
            self._progress = replace(self._progress, **changes)  # type: ignore[arg-type]

    def read(self, acknowledged: int) -> tuple[Progress, dict[str, float], int, tuple[Update, ...]]:
        """Progress, the latest value of each series, the number of the first update that follows `acknowledged`, and
        the updates from there on. Those up to `acknowledged` are forgotten."""
        with self._lock:
            self.heard_at = time.monotonic()
            forget = min(max(acknowledged + 1 - self._first, 0), len(self._updates))
            del self._updates[:forget]
            self._first += forget
            return self._progress, dict(self._latest), self._first, tuple(self._updates)


class LossLog:
    """Means of the training loss over intervals of `every` steps, whatever the pieces in which the steps come."""

    def __init__(self, recorder: Recorder, every: int, last_step: int, loss: float = 0.0, weight: float = 0.0) -> None:
        """`loss`, `weight`: the `sums` of a log that this one goes on for."""
        self._recorder, self._every, self._last = recorder, every, last_step
        self._loss, self._weight = loss, weight

    @property
    def sums(self) -> tuple[float, float]:
        """Of losses and of weights, since the last point."""
        return self._loss, self._weight

    def add(self, report: StepReport) -> None:
        """A committed step; at an interval's end, and at the last step, the interval's point."""
        self._loss += report.loss * report.weight_sum
        self._weight += report.weight_sum
        if report.step % self._every == 0 or report.step == self._last:
            self.flush(report)

    def flush(self, report: StepReport) -> None:
        """The point of what has come since the last one, at the step of `report`."""
        if self._weight > 0:
            self._recorder.point("train_loss", report.step, self._loss / self._weight)
            self._recorder.point("learning_rate", report.step, report.learning_rate)
        self._loss = self._weight = 0.0
