"""The exchange over object references: workers and aggregator are actors, and the trainer only chains their calls.

A gradient travels from its worker to the aggregator, parameters from the aggregator to every worker, and neither
through the trainer: it passes on references to results that do not exist yet, up to AHEAD steps of them.

When a worker dies, every call that depends on its lost result fails, down the chain. The aggregator is then still at
the last step that was whole, and the rest is chained anew with the dead worker's shards dealt to the others. Since a
step is a pure function of parameters, step and shard, the weights come out the same.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from worker.errors import RemoteLost, TooManyFailures
from worker.exchange import Tell, merge
from worker.plan import StepPlan, StepReport, TrainerEvent
from worker.sampling import deal

Array = NDArray[Any]
Reference = Any  # what a call returns at once, in place of its result
AHEAD = 16
FAILURES_ALLOWED, FAILURE_WINDOW_S = 30, 60.0


class Remote(Protocol):
    """A process that can be called. Calls of one caller run in their order."""

    name: str

    def call(self, method: str, *arguments: Any, returns: int = 1) -> Any:
        """A reference to the result, or a list of `returns` references to its parts. References are arguments, too."""


class Transport(Protocol):
    """What turns references into results, and says who is alive."""

    def get(self, references: Sequence[Reference]) -> list[Any]:
        """The results. Raises RemoteLost if a process that they depend on died, or the error that the call raised."""

    def is_alive(self, remote: Remote) -> bool:
        """Whether the process still answers; one that does not is killed."""

    def is_ready(self, reference: Reference) -> bool:
        """Whether `get` would not wait."""

    def recruit(self) -> Remote:
        """A new worker; its first answer may take a while."""

    def dismiss(self, remote: Remote) -> None:
        """End a worker that takes no part."""


class ObjectExchange:
    """Steps over `workers` and one `aggregator`. Raises RemoteLost from any method when the aggregator is lost."""

    def __init__(
        self,
        plan: StepPlan,
        seed: int,
        workers: Sequence[Remote],
        aggregator: Remote,
        transport: Transport,
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan, self._aggregator, self._transport = plan, aggregator, transport
        self._tell, self._clock = tell, clock
        self._lost_at: deque[float] = deque()
        self.failures = 0
        self.numerics = ""
        self._workers: list[Remote] = []
        self._joining = [(worker, worker.call("attach", plan)) for worker in workers]
        self._parameters: Reference = aggregator.call("begin", plan, seed)
        self._committed = 0
        self._transport.get([self._parameters])
        self._admit(wait=True)

    @property
    def workers(self) -> int:
        return len(self._workers)

    def run_steps(self, count: int) -> list[StepReport]:
        target, reports = self._committed + count, list[StepReport]()
        self._admit(wait=False)
        while self._committed < target:
            try:
                for report in self._chain(target):
                    reports.append(report)
                    self._committed = report.step
            except RemoteLost as error:
                self._recover(error)
                # Steps whose report was lost on the way are committed all the same: ask for those reports again.
                reports += self._missed(self._committed)
        return reports

    def _chain(self, target: int) -> Any:
        """Chain the steps after the committed one; yields their reports in order, as they come."""
        waiting: deque[Reference] = deque()
        for step in range(self._committed + 1, target + 1):
            waiting.append(self._step(step))
            if len(waiting) > AHEAD:
                yield self._transport.get([waiting.popleft()])[0]
        while waiting:
            yield self._transport.get([waiting.popleft()])[0]

    def _step(self, step: int) -> Reference:
        """The reference to the step's report."""
        gradients: list[Reference] = [None] * self._plan.shards
        reports = []
        for worker, shards in zip(self._workers, deal(self._plan.shards, len(self._workers)), strict=True):
            if shards:
                *found, report = worker.call("gradients", step, shards, self._parameters, returns=len(shards) + 1)
                reports.append(report)
                for shard, gradient in zip(shards, found, strict=True):
                    gradients[shard] = gradient
        self._parameters, report = self._aggregator.call("apply_parts", step, *gradients, *reports, returns=2)
        return report

    def _missed(self, known: int) -> list[StepReport]:
        """The reports of steps after `known` that the aggregator has committed."""
        missed: list[StepReport] = self._transport.get([self._aggregator.call("reports_after", known)])[0]
        if missed:
            self._committed = missed[-1].step
        self._parameters = self._aggregator.call("parameters")
        return missed

    def evaluate(self, split: str, which: str = "current") -> NDArray[np.float64]:
        network = self._plan.network
        while True:
            try:
                parameters = self._aggregator.call("parameters", which)
                dealt = list(zip(self._workers, deal(self._plan.shards, len(self._workers)), strict=True))
                calls = [w.call("evaluations", split, shards, parameters) for w, shards in dealt]
                parts: list[Any] = [None] * self._plan.shards
                for (_, shards), found in zip(dealt, self._transport.get(calls), strict=True):
                    for shard, sums in zip(shards, found, strict=True):
                        parts[shard] = sums
                return merge(network.loss, network.outputs, parts)
            except RemoteLost as error:
                self._recover(error)

    def keep_best(self) -> None:
        self._transport.get([self._aggregator.call("keep_best")])

    def parameters(self, which: str = "current") -> Array:
        found: Array = self._transport.get([self._aggregator.call("parameters", which)])[0]
        return found.copy()

    def close(self) -> None:
        self._parameters = None
        for worker, _ in self._joining:
            self._transport.dismiss(worker)
        for remote, method in ((self._aggregator, "end"), *((worker, "detach") for worker in self._workers)):
            try:
                self._transport.get([remote.call(method)])
            except RemoteLost:
                continue  # it has nothing to let go any more

    def _recover(self, error: RemoteLost) -> None:
        """Go on with the workers that are left, if a worker was what died; a new one joins at a later step."""
        began = self._clock()
        dead = [worker for worker in self._workers if not self._transport.is_alive(worker)]
        if not dead or not self._transport.is_alive(self._aggregator):
            raise error
        self._workers = [worker for worker in self._workers if worker not in dead]
        names = ", ".join(worker.name for worker in dead)
        self._count_failures(len(dead), error)
        for _ in dead:
            self._recruit()
        self._admit(wait=not self._workers)
        cost_ms = round(1000 * (self._clock() - began))
        message = f"lost {names} in step {self._committed + 1}; its shards went to others within {cost_ms} ms"
        data = {"workers": [worker.name for worker in dead], "step": self._committed + 1, "cost_ms": cost_ms}
        self._tell(TrainerEvent("fault", "warning", message, data, time.time()))

    def _count_failures(self, count: int, error: RemoteLost) -> None:
        now = self._clock()
        self.failures += count
        self._lost_at.extend([now] * count)
        while now - self._lost_at[0] > FAILURE_WINDOW_S:
            self._lost_at.popleft()
        if len(self._lost_at) > FAILURES_ALLOWED:
            raise TooManyFailures(len(self._lost_at), FAILURE_WINDOW_S) from error

    def _admit(self, wait: bool) -> None:
        """Let workers that have attached take part. `wait`: until one does; RemoteLost when none is left that may."""
        while self._joining:
            for worker, call in list(self._joining):
                if wait or self._transport.is_ready(call):
                    self._joining.remove((worker, call))
                    self._admit_one(worker, call)
            if not wait or self._workers:
                return
        if wait and not self._workers:
            raise RemoteLost(f"no worker is left that computes the bits of {self.numerics}")

    def _admit_one(self, worker: Remote, call: Reference) -> None:
        """One that computes other bits than the first is dismissed; for one that has died, another is recruited."""
        try:
            found: str = self._transport.get([call])[0]
        except RemoteLost as error:
            self._count_failures(1, error)
            self._recruit()
            return
        self.numerics = self.numerics or found
        if found == self.numerics:
            self._workers.append(worker)
            return
        self._transport.dismiss(worker)
        data = {"worker": worker.name, "numerics": found, "expected": self.numerics}
        message = f"{worker.name} computes other bits than the rest, and takes no part"
        self._tell(TrainerEvent("fault", "warning", message, data, time.time()))

    def _recruit(self) -> None:
        worker = self._transport.recruit()
        self._joining.append((worker, worker.call("attach", self._plan)))
