"""A job as people watch it: a live bar on a terminal, plain lines anywhere else, through outages, to the job's end."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from service.client import FINAL_STATUSES, OUTAGE_S, FallLine
from service.transport import FallLineError, Json, Patience

POLL_S = 0.4
PLAIN_LINE_S = 2.0  # on something that is not a terminal: a line each epoch, but at most every two seconds
SHOWN_EVENTS = frozenset({"status", "fault", "log"})


@dataclass(frozen=True)
class Snapshot:
    """What is shown of a job at one moment, already in words."""

    stage: str
    epoch: str
    fraction: float
    figures: str

    @classmethod
    def of(cls, job: Json) -> "Snapshot":
        progress = job.get("progress") or {}
        stage = str(progress.get("phase") or job["status"]) if job["status"] == "running" else str(job["status"])
        epochs, steps = progress.get("epochs") or 0, progress.get("steps") or 0
        epoch = f"epoch {progress.get('epoch') or 0}/{epochs}" if epochs else ""
        fraction = (progress.get("step") or 0) / steps if steps else 0.0
        # Early stopping ends a training before its last planned step; a job that succeeded has no step left.
        return cls(stage, epoch, 1.0 if job["status"] == "succeeded" else min(fraction, 1.0), _figures(job))


def _figures(job: Json) -> str:
    progress, metrics = job.get("progress") or {}, job.get("metrics") or {}
    parts = []
    if metrics.get("train_loss") is not None:
        parts.append(f"loss {metrics['train_loss']:.4g}")
    if job["status"] in FINAL_STATUSES:
        return "  ".join(parts)
    if progress.get("phase") == "training" and progress.get("examples_per_second"):
        parts.append(f"{progress['examples_per_second']:,.0f} examples/s")
    if progress.get("phase") == "training" and progress.get("eta_seconds") is not None:
        parts.append(f"{duration(progress['eta_seconds'])} left")
    if job.get("status_reason"):
        parts.append(str(job["status_reason"]))
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`0:07`, `12:30`, `3:00:05`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _ThinBar(BarColumn):
    """A bar that moves (pulses) while nothing is known about how far the job is, and stands still at its end."""

    def render(self, task: Task) -> Any:
        self.bar_width = max(10, min(40, task.fields["width"]))
        return super().render(task)


class _Figures(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["figures"], overflow="ellipsis", no_wrap=True)


class JobWatch:
    """Watches one job to its end. A lost connection is said, and tried again for ten minutes.

    `pause` and `clock` are what a test puts in time's place.
    """

    def __init__(
        self,
        client: FallLine,
        job_id: str,
        console: Console,
        *,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._job_id, self._console = client, job_id, console
        self._pause, self._clock = pause, clock
        self._patience = Patience(OUTAGE_S, pause, clock)
        self._last_event = 0
        self._plain: tuple[float, Snapshot] | None = None

    def run(self) -> Json:
        """The ended job."""
        job = self._read()
        self._console.print(describe_spec(job), highlight=False, soft_wrap=True)
        if not self._console.is_terminal:
            return self._follow(job, self._plain_line)
        with Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("[bold]{task.description}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[epoch]}", table_column=Column(no_wrap=True)),
            _ThinBar(),
            _Figures(table_column=Column(no_wrap=True, ratio=1)),
            console=self._console,
            expand=True,
        ) as bar:
            task = bar.add_task("", total=None, epoch="", figures="", width=20)
            return self._follow(job, lambda job: self._move(bar, task, job))

    def _follow(self, job: Json, show: Callable[[Json], None]) -> Json:
        while True:
            ended = job["status"] in FINAL_STATUSES
            self._tell_events()
            show(job)
            if ended:
                return job
            self._pause(POLL_S)
            job = self._read()

    def _read(self) -> Json:
        return self._sitting_out(lambda: self._client.jobs.show(self._job_id))

    def _tell_events(self) -> None:
        while True:
            page = self._sitting_out(lambda: self._client.jobs.events_page(self._job_id, after=self._last_event))
            for event in page["data"]:
                self._last_event = event["id"]
                if event["type"] in SHOWN_EVENTS:
                    self._say(event["message"], event["level"], event["created_at"])
            if not page["has_more"]:
                return

    def _sitting_out(self, call: Callable[[], Json]) -> Json:
        while True:
            try:
                answer = call()
            except FallLineError as error:
                if error.passing and not self._patience.tried:
                    self._say(f"connection lost ({error}); the job goes on, trying again", "warning", time.time())
                self._patience.wait(error)
            else:
                if self._patience.tried:
                    self._say("connected again", "info", time.time())
                self._patience.reset()
                return answer

    def _say(self, message: str, level: str, at: float) -> None:
        style = {"warning": "yellow", "error": "red"}.get(level, "default")
        stamp = time.strftime("%H:%M:%S", time.localtime(at))
        self._console.print(f"[dim]{stamp}[/dim] [{style}]{escape(message)}[/]", highlight=False, soft_wrap=True)

    def _move(self, bar: Progress, task: Any, job: Json) -> None:
        snapshot = Snapshot.of(job)
        known = snapshot.fraction > 0 or job["status"] in FINAL_STATUSES
        bar.update(
            task,
            description=snapshot.stage,
            epoch=snapshot.epoch,
            figures=snapshot.figures,
            total=1.0 if known else None,
            completed=snapshot.fraction,
            width=self._console.width // 4,
        )

    def _plain_line(self, job: Json) -> None:
        snapshot, now = Snapshot.of(job), self._clock()
        if self._plain is not None:
            told_at, told = self._plain
            same_stage = (snapshot.stage, job["status"] in FINAL_STATUSES) == (told.stage, False)
            if same_stage and (snapshot.epoch == told.epoch or now - told_at < PLAIN_LINE_S):
                return
        self._plain = (now, snapshot)
        line = "  ".join(part for part in (snapshot.stage, snapshot.epoch, snapshot.figures) if part)
        self._console.print(escape(line), highlight=False, soft_wrap=True)


def describe_spec(job: Json) -> str:
    """The job's resolved spec, a line for each field: what every `auto` has become."""
    lines = [f"{job['id']}  {job['name']}"]
    for field, value in job["spec"].items():
        if value not in (None, {}, []) and field != "name":
            lines.append(f"  {field:<14} {_flow(value)}")
    return escape("\n".join(lines))


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items() if inner is not None)
    if isinstance(value, list):
        shown = ", ".join(_flow(inner) for inner in value[:8])
        return f"[{shown}]" if len(value) <= 8 else f"[{shown}, ... {len(value)} in all]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
