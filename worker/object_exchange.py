"""The exchange over object references: workers and aggregator are actors, and the trainer only chains their calls.

A gradient travels from its worker to the aggregator, parameters from the aggregator to every worker, and neither
through the trainer: it passes on references to results that do not exist yet, up to AHEAD steps of them.

When a worker dies, every call that depends on its lost result fails, down the chain. The aggregator is then still at
the last step that was whole, and the rest is chained anew with the dead worker's shards dealt to the others. Since a
step is a pure function of parameters, step and shard, the weights come out the same.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.crew import Crew, Reference, Remote, Transport
from worker.errors import RemoteLost
from worker.exchange import merge
from worker.plan import StepPlan, StepReport
from worker.sampling import deal

Array = NDArray[Any]
AHEAD = 16
SILENCE_S = 10.0


class ObjectExchange:
    """Steps over the members of `crew`. Raises RemoteLost from any method when the aggregator is lost."""

    def __init__(
        self,
        plan: StepPlan,
        seed: int,
        crew: Crew,
        aggregator: Remote,
        transport: Transport,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan, self._aggregator, self._transport, self._clock = plan, aggregator, transport, clock
        self._crew = crew
        self._parameters: Reference = aggregator.call("begin", plan, seed)
        self._committed = 0
        self._transport.get([self._parameters])

    @property
    def workers(self) -> int:
        return len(self._crew.members)

    @property
    def failures(self) -> int:
        return self._crew.failures

    @property
    def numerics(self) -> str:
        return self._crew.numerics

    def scale(self, workers: int) -> None:
        self._crew.scale(workers)

    def run_steps(self, count: int) -> list[StepReport]:
        target, reports = self._committed + count, list[StepReport]()
        self._crew.call_up()
        self._crew.admit(wait=False)
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

    def _chain(self, target: int) -> Iterator[StepReport]:
        """Chain the steps after the committed one; yields their reports in order, as they come."""
        waiting: deque[Reference] = deque()
        for step in range(self._committed + 1, target + 1):
            waiting.append(self._step(step))
            if len(waiting) > AHEAD:
                yield self._get([waiting.popleft()])[0]
        while waiting:
            yield self._get([waiting.popleft()])[0]

    def _step(self, step: int) -> Reference:
        """The reference to the step's report."""
        gradients: list[Reference] = [None] * self._plan.shards
        reports = []
        for worker, shards in self._dealt():
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
                dealt = self._dealt()
                calls = [w.call("evaluations", split, shards, parameters) for w, shards in dealt]
                parts: list[Any] = [None] * self._plan.shards
                for (_, shards), found in zip(dealt, self._get(calls), strict=True):
                    for shard, sums in zip(shards, found, strict=True):
                        parts[shard] = sums
                return merge(network.loss, network.outputs, parts)
            except RemoteLost as error:
                self._recover(error)

    def diagnose(self) -> dict[str, float]:
        while True:
            try:
                before, after = (self._aggregator.call("parameters", which) for which in ("previous", "current"))
                call = self._crew.members[0].call("diagnose", self._committed, before, after)
                found: dict[str, float] = self._get([call])[0]
                return found
            except RemoteLost as error:
                self._recover(error)

    def keep_best(self) -> None:
        self._transport.get([self._aggregator.call("keep_best")])

    def parameters(self, which: str = "current") -> Array:
        found: Array = self._transport.get([self._aggregator.call("parameters", which)])[0]
        return found.copy()

    def snapshot(self) -> Array:
        found: Array = self._transport.get([self._aggregator.call("state")])[0]
        return found

    def restore(self, step: int, state: Array, best: Array | None) -> None:
        self._parameters = self._aggregator.call("restore", step, state, best)
        self._transport.get([self._parameters])
        self._committed = step

    def close(self) -> None:
        self._parameters = None
        self._crew.close()
        try:
            self._transport.get([self._aggregator.call("end")])
        except RemoteLost:
            return  # it has nothing to let go any more

    def _get(self, references: list[Reference]) -> list[Any]:
        """Results of workers' calls. Where none comes for SILENCE_S, each worker is asked whether it lives: one that
        hangs is killed for its silence, and one that has much to do is not."""
        for reference in references:
            while not self._transport.wait([reference], SILENCE_S):
                for worker in self._crew.members:
                    self._transport.is_alive(worker)
        return self._transport.get(references)

    def _recover(self, error: RemoteLost) -> None:
        """Go on with the workers that are left, if a worker was what died; a new one joins at a later step."""
        began = self._clock()
        dead = [worker for worker in self._crew.members if not self._transport.is_alive(worker)]
        if not dead or not self._transport.is_alive(self._aggregator):
            raise error
        self._crew.lose(dead, self._committed + 1, error, began)

    def _dealt(self) -> list[tuple[Remote, tuple[int, ...]]]:
        """The workers that have shards, with them."""
        members = self._crew.members
        dealt = zip(members, deal(self._plan.shards, len(members)), strict=True)
        return [(worker, shards) for worker, shards in dealt if shards]
