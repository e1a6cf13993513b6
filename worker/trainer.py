"""The job's loop: prepare, train epoch by epoch, keep the best, evaluate. It knows its exchange by protocol alone."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from core.metrics import metrics
from core.model_file import Model, model_bytes
from worker.dataset import PreparedDataset, prepare
from worker.diagnosis import is_due
from worker.errors import Cancelled, Diverged, Orphaned
from worker.exchange import Exchange
from worker.plan import StepPlan, StepReport, TrainerEvent, TrainingPlan, TrainingResult
from worker.probe import CHUNK_S as PROBE_CHUNK_S
from worker.probe import Probe
from worker.recorder import LossLog, Recorder
from worker.sampling import Sampling
from worker.stopping import StoppingState, decide

CHUNK_S = 0.2  # how long the trainer lets the exchange run before it looks around
_SMOOTHING = 0.3  # of the examples per second, from chunk to chunk

OpenExchange = Callable[[StepPlan, int], Exchange]  # step plan, seed


class Trainer:
    """One attempt at one job. `run` is called once; `cancel` and `scale` from another thread."""

    def __init__(
        self,
        plan: TrainingPlan,
        recorder: Recorder,
        open_exchange: OpenExchange,
        orphan_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan, self._recorder, self._open, self._clock = plan, recorder, open_exchange, clock
        self._orphan_seconds = orphan_seconds
        self._cancelled, self._began = False, clock()
        self._rate = 0.0  # examples a second
        self._asked_workers: int | None = None  # by `scale`
        self._scaled_to: int | None = None  # by request
        self._probe: Probe | None = None

    def cancel(self) -> None:
        """Ask `run` to raise Cancelled soon."""
        self._cancelled = True

    def scale(self, workers: int) -> None:
        """Ask `run` to go on with so many workers, at most one a shard. It settles `auto_workers`, too.

        Raises ValueError for less than one.
        """
        if workers < 1:
            raise ValueError(f"workers: {workers}; expected at least 1")
        self._asked_workers = workers

    def run(self) -> TrainingResult:
        """The trained model. Raises Diverged, TooManyFailures, Cancelled, Orphaned, and what `prepare` raises."""
        self._recorder.progress(phase="preparing", epochs=self._plan.epochs)
        prepared = prepare(self._plan.data)
        self.look_around()
        steps = self._step_plan(prepared)
        exchange = self._open(steps, self._plan.seed)
        try:
            self._recorder.progress(phase="training", steps=steps.steps, workers=exchange.workers)
            best_epoch, stopped, epoch, step = self._train(exchange, steps, prepared)
            self._recorder.progress(phase="evaluating", eta_seconds=None)
            which = "current" if best_epoch is None else "best"
            final = self._evaluate(exchange, prepared, step, which)
            for name, value in final.items():
                if name.startswith("test_"):
                    self._recorder.point(name, step, value)
            parameters = exchange.parameters(which)
            numerics, failures = exchange.numerics, exchange.failures
        finally:
            exchange.close()
        model = Model(
            steps.network, prepared.preprocessing, parameters, self._plan.spec, self._plan.data.dataset_sha256
        )
        return TrainingResult(
            weights_sha256=model.weights_sha256,
            model_sha256=model.model_sha256,
            numerics=numerics,
            parameters=parameters.size,
            steps=step,
            epochs=epoch,
            worker_failures=failures,
            best_epoch=best_epoch,
            stopped_early=stopped,
            metrics=final,
            signature=prepared.preprocessing.signature(),
            input_example=model.input_example,
            files=model_bytes(model),
        )

    def _step_plan(self, prepared: PreparedDataset) -> StepPlan:
        plan, fitted = self._plan, prepared.preprocessing
        sampling = Sampling(prepared.rows["train"], plan.batch_size, plan.shards, plan.seed)
        network = replace(plan.network, inputs=fitted.width, outputs=fitted.outputs)
        steps = plan.epochs * sampling.steps_per_epoch
        return StepPlan(
            str(prepared.folder), network, sampling, plan.optimizer, plan.schedule, steps, plan.threads_per_worker
        )

    def _train(
        self, exchange: Exchange, steps: StepPlan, prepared: PreparedDataset
    ) -> tuple[int | None, str | None, int, int]:
        """Best epoch (None: the last one counts), why it stopped early (None: it did not), last epoch, last step."""
        rule = self._plan.early_stopping if prepared.rows["validation"] else None
        self._began = self._clock()
        state, losses = StoppingState(), LossLog(self._recorder, self._plan.log_every_steps, steps.steps)
        self._probe = Probe(exchange.workers) if self._plan.auto_workers else None
        for epoch in range(1, self._plan.epochs + 1):
            for report in self._epoch(exchange, steps):
                losses.add(report)
                self._progress(exchange, report, epoch, steps)
            last = report
            found = self._evaluate(exchange, prepared, last.step, "current", ("validation",))
            for name, value in found.items():
                self._recorder.point(name, last.step, value)
            if is_due(epoch, self._plan.epochs):
                self._recorder.diagnostics(last.step, exchange.diagnose())
            stopped = None
            if rule is not None:
                decision = decide(rule, state, epoch, found["validation_loss"])
                state, stopped = decision.state, "early_stopping" if decision.stop else None
                if decision.is_best:
                    exchange.keep_best()
            if stopped is None and self._is_over_time():
                stopped = "max_seconds"
            if stopped and last.step < steps.steps:
                losses.flush(last)
                return state.best_epoch, stopped, epoch, last.step
        return state.best_epoch, None, self._plan.epochs, steps.steps

    def _epoch(self, exchange: Exchange, steps: StepPlan) -> Iterator[StepReport]:
        """Run an epoch's steps in chunks of about CHUNK_S; between chunks the trainer looks around."""
        count, done, chunk = steps.sampling.steps_per_epoch, 0, 1
        while done < count and not (done and self._is_over_time()):
            self.look_around()
            self._scale(exchange)
            began = self._clock()
            reports = exchange.run_steps(min(chunk, count - done))
            seconds = max(self._clock() - began, 1e-9)
            rate = sum(report.rows for report in reports) / seconds
            self._rate = rate if self._rate == 0 else self._rate + _SMOOTHING * (rate - self._rate)
            done += len(reports)
            chunk_s = CHUNK_S if self._probe is None else PROBE_CHUNK_S
            chunk = max(1, min(4 * chunk, round(chunk_s * len(reports) / seconds)))
            self._measure(exchange, reports, seconds, steps)
            yield from reports

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
        """What `run` does between chunks, and who waits for it meanwhile: raises Cancelled, Orphaned."""
        if self._cancelled:
            raise Cancelled
        if self._orphan_seconds is not None and time.monotonic() - self._recorder.heard_at > self._orphan_seconds:
            raise Orphaned(self._orphan_seconds)
