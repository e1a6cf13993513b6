"""The job's loop: prepare, train epoch by epoch, keep the best, evaluate. It knows its exchange by protocol alone."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from core.metrics import metrics
from core.model_file import Model, model_bytes
from worker.checkpointing import Checkpointing, Position
from worker.dataset import PreparedDataset, prepare
from worker.diagnosis import is_due
from worker.errors import Cancelled, Diverged, Orphaned, Paused
from worker.exchange import Exchange
from worker.local_steps import in_rounds, with_local_rate
from worker.plan import StepPlan, StepReport, TrainerEvent, TrainingPlan, TrainingResult
from worker.probe import CHUNK_S as PROBE_CHUNK_S
from worker.probe import Probe
from worker.recorder import LossLog, Recorder
from worker.sampling import Sampling
from worker.stopping import decide
from worker.warm_start import Kept, kept_weights

CHUNK_S = 0.2  # how long the trainer lets the exchange run before it looks around
_SMOOTHING = 0.3  # of the examples per second, from chunk to chunk

OpenExchange = Callable[[StepPlan, int], Exchange]  # step plan, seed


class Trainer:
    """One attempt at one job. `run` is called once; `cancel`, `pause`, `save` and `scale` from another thread."""

    def __init__(
        self,
        plan: TrainingPlan,
        recorder: Recorder,
        open_exchange: OpenExchange,
        orphan_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        attempt: int = 1,
    ) -> None:
        self._plan, self._recorder, self._open, self._clock = plan, recorder, open_exchange, clock
        self._orphan_seconds = orphan_seconds
        self._checkpoints = Checkpointing(plan, attempt, recorder, clock)
        self._cancelled = self._paused = False
        self._to_save: threading.Event | None = None
        self._began = clock()  # as if all attempts had been this one
        self._rate = 0.0  # examples a second
        self._asked_workers: int | None = None  # by `scale`
        self._scaled_to: int | None = None  # by request
        self._probe: Probe | None = None

    def cancel(self) -> None:
        """Ask `run` to raise Cancelled soon."""
        self._cancelled = True

    def pause(self) -> None:
        """Ask `run` to raise Paused soon, after a checkpoint has been written."""
        self._paused = True

    def save(self) -> threading.Event:
        """Ask `run` to write a checkpoint soon, and to go on; the event is set when it is on the disk."""
        self._to_save = saved = threading.Event()
        return saved

    def scale(self, workers: int) -> None:
        """Ask `run` to go on with so many workers, at most one a shard. It settles `auto_workers`, too.

        Raises ValueError for less than one.
        """
        if workers < 1:
            raise ValueError(f"workers: {workers}; expected at least 1")
        self._asked_workers = workers

    def run(self) -> TrainingResult:
        """The trained model. Raises Diverged, TooManyFailures, Cancelled, Paused, Orphaned, and what `prepare` raises.

        It goes on from the plan's newest checkpoint, where there is one; else it begins with the weights of
        `warm_start` (WarmStartDamaged where they are not what was kept), or with the seed's.
        """
        self._recorder.progress(phase="preparing", epochs=self._plan.epochs)
        prepared = prepare(self._plan.data)
        self.look_around()
        steps = self._step_plan(prepared)
        with closing(self._checkpoints), closing(self._open(steps, self._plan.seed)) as exchange:
            self._recorder.progress(phase="training", steps=steps.steps, workers=exchange.workers)
            at = self._train(exchange, steps, prepared)
            self._recorder.progress(phase="evaluating", eta_seconds=None)
            which = "current" if at.stopping.best_epoch is None else "best"
            final = self._evaluate(exchange, prepared, at.step, which)
            for name, value in final.items():
                if name.startswith("test_"):
                    self._recorder.point(name, at.step, value)
            parameters = exchange.parameters(which)
            numerics, failures = exchange.numerics, at.worker_failures + exchange.failures
        model = Model(
            steps.network, prepared.preprocessing, parameters, self._plan.spec, self._plan.data.dataset_sha256
        )
        return TrainingResult(
            weights_sha256=model.weights_sha256,
            model_sha256=model.model_sha256,
            numerics=numerics,
            parameters=parameters.size,
            steps=at.step,
            epochs=at.epoch,
            worker_failures=failures,
            best_epoch=at.stopping.best_epoch,
            stopped_early=at.stopped,
            metrics=final,
            signature=prepared.preprocessing.signature(),
            input_example=model.input_example,
            files=model_bytes(model),
        )

    def _step_plan(self, prepared: PreparedDataset) -> StepPlan:
        plan, fitted = self._plan, prepared.preprocessing
        sampling = Sampling(prepared.rows["train"], plan.batch_size, plan.shards, plan.seed, plan.local_steps or 1)
        network = replace(plan.network, inputs=fitted.width, outputs=fitted.outputs)
        steps = plan.epochs * sampling.steps_per_epoch
        found = StepPlan(
            str(prepared.folder), network, sampling, plan.optimizer, plan.schedule, steps, plan.threads_per_worker
        )
        found = replace(found, data_sha256=prepared.sha256, half_gradients=plan.half_gradients)
        return found if plan.local_steps is None else in_rounds(found, plan.outer)

    def _train(self, exchange: Exchange, steps: StepPlan, prepared: PreparedDataset) -> Position:
        """Where it ended."""
        rule = self._plan.early_stopping if prepared.rows["validation"] else None
        at, losses = self._begin(exchange, steps)
        while at.stopped is None and at.epoch < self._plan.epochs:
            epoch = at.epoch + 1
            for report in self._epoch(exchange, steps, at, losses):
                at.step = report.step
                losses.add(with_local_rate(steps, report))
                self._progress(exchange, report, epoch, steps)
            found = self._evaluate(exchange, prepared, at.step, "current", ("validation",))
            for name, value in found.items():
                self._recorder.point(name, at.step, value)
            if is_due(epoch, self._plan.epochs):
                self._recorder.diagnostics(at.step, exchange.diagnose())
            stopped = None
            if rule is not None:
                decision = decide(rule, at.stopping, epoch, found["validation_loss"])
                at.stopping, stopped = decision.state, "early_stopping" if decision.stop else None
                if decision.is_best:
                    exchange.keep_best()
            if stopped is None and self._is_over_time():
                stopped = "max_seconds"
            at.epoch = epoch
            if stopped and at.step < steps.steps:
                losses.flush(report)
                at.stopped = stopped
        return at

    def _begin(self, exchange: Exchange, steps: StepPlan) -> tuple[Position, LossLog]:
        """At the first step, or where a checkpoint says: that one knows better than `warm_start`."""
        self._probe = Probe(exchange.workers) if self._plan.auto_workers else None
        found, at, sums = self._checkpoints.resume(exchange), Position(), (0.0, 0.0)
        if found is not None:
            at = Position(found.step, found.epoch, found.stopping, found.stopped, found.worker_failures, found.seconds)
            sums = found.loss_sum, found.weight_sum
            self._recorder.progress(step=at.step, epoch=steps.sampling.epoch_of(at.step))
        elif self._plan.warm_start is not None:
            self._start_warm(exchange, self._plan.warm_start)
        self._began = self._clock() - at.seconds
        return at, LossLog(self._recorder, self._plan.log_every_steps, steps.steps, *sums)

    def _start_warm(self, exchange: Exchange, source: Kept) -> None:
        """Begin with kept weights; the optimizer's state is that of a first step all the same."""
        weights = kept_weights(source)
        exchange.restore(0, np.concatenate([weights[None], exchange.snapshot()[1:]]), None)
        message = f"begins with the weights {source.sha256[:16]}..., as training.warm_start says"
        self._recorder.event(TrainerEvent("log", "info", message, {"weights_sha256": source.sha256}, time.time()))

    def _epoch(self, exchange: Exchange, steps: StepPlan, at: Position, losses: LossLog) -> Iterator[StepReport]:
        """Run what is left of the epoch after `at.epoch`, in chunks of about CHUNK_S; between chunks the trainer looks
        around. Who takes the reports has dealt with a chunk's before the next one begins."""
        last, chunk = (at.epoch + 1) * steps.sampling.steps_per_epoch, 1
        first = at.step
        while at.step < last and not (at.step > first and self._is_over_time()):
            self._stop_at_boundary(exchange, at, losses)
            self._scale(exchange)
            began = self._clock()
            reports = exchange.run_steps(min(chunk, last - at.step))
            seconds = max(self._clock() - began, 1e-9)
            rate = sum(report.rows for report in reports) / seconds
            self._rate = rate if self._rate == 0 else self._rate + _SMOOTHING * (rate - self._rate)
            chunk_s = CHUNK_S if self._probe is None else PROBE_CHUNK_S
            chunk = max(1, min(4 * chunk, round(chunk_s * len(reports) / seconds)))
            self._measure(exchange, reports, seconds, steps)
            yield from reports

    def _stop_at_boundary(self, exchange: Exchange, at: Position, losses: LossLog) -> None:
        """Between two chunks: a checkpoint, where one is due or the training ends here to go on later; `look_around`.

        The last epoch that was begun has steps to come: what goes on from here commits one before it looks inside.
        """
        seconds = self._clock() - self._began
        try:
            self.look_around()
        except (Paused, Orphaned):
            self._checkpoints.write(exchange, at, losses, seconds, wait=True)
            raise
        saved, self._to_save = self._to_save, None
        if saved is not None or self._checkpoints.is_due():
            self._checkpoints.write(exchange, at, losses, seconds, wait=saved is not None)
        if saved is not None:
            saved.set()

    def _scale(self, exchange: Exchange) -> None:
        """Have as many workers as `scale` has been asked for since."""
        asked = self._asked_workers
        if asked is not None and asked != self._scaled_to:
            self._probe = None  # who asks knows what is wanted
            self._scaled_to = asked
            exchange.scale(asked)

    def _measure(self, exchange: Exchange, reports: Sequence[StepReport], seconds: float, steps: StepPlan) -> None:
        """`auto_workers`: let the probe know what the last chunk, of `seconds`, was like, and do what it says."""
        if self._probe is None:
            return
        probe, workers = self._probe, self._probe.wanted
        if probe.choice is None:
            rows = sum(report.rows for report in reports)
            left = (steps.steps - reports[-1].step) * seconds / len(reports)
            probe.add(exchange.workers, len(reports), rows, seconds, left)
        if probe.wanted != workers:
            exchange.scale(probe.wanted)
        if probe.choice is not None:
            choice, self._probe = probe.choice, None
            rates = {str(workers): rate for workers, rate in choice.rates.items()}  # JSON has no other keys
            data = {"workers": choice.workers, "examples_per_second": rates}
            message = f"workers: auto goes on with {choice.workers}: {choice.reason}"
            self._recorder.event(TrainerEvent("log", "info", message, data, time.time()))

    def _is_over_time(self) -> bool:
        return self._plan.max_seconds is not None and self._clock() - self._began > self._plan.max_seconds

    def _progress(self, exchange: Exchange, report: StepReport, epoch: int, steps: StepPlan) -> None:
        rows_left = (self._plan.epochs - report.step / steps.sampling.steps_per_epoch) * steps.sampling.rows
        self._recorder.progress(
            epoch=epoch,
            step=report.step,
            examples_per_second=self._rate,
            eta_seconds=max(rows_left, 0.0) / self._rate if self._rate else None,
            workers=exchange.workers,
        )

    def _evaluate(
        self,
        exchange: Exchange,
        prepared: PreparedDataset,
        step: int,
        which: str,
        splits: tuple[str, ...] = ("validation", "test"),
    ) -> dict[str, float]:
        """The metrics of those `splits` that have rows, by name with the split's name before it.

        Raises Diverged, in `step`, where one is not finite: the training rows may have hidden it so far.
        """
        found = {}
        for split in splits:
            if prepared.rows[split]:
                sums = exchange.evaluate(split, which)
                scales = prepared.preprocessing.target_scales
                for name, value in metrics(self._plan.network.loss, sums, scales).items():
                    if not math.isfinite(value):
                        raise Diverged(step, None, f"{split}_{name}")
                    found[f"{split}_{name}"] = value
        return found

    def look_around(self) -> None:
        """What `run` does between chunks, and who waits for it meanwhile: raises Cancelled, Paused, Orphaned."""
        if self._cancelled:
            raise Cancelled
        if self._paused:
            raise Paused
        if self._orphan_seconds is not None and time.monotonic() - self._recorder.heard_at > self._orphan_seconds:
            raise Orphaned(self._orphan_seconds)
