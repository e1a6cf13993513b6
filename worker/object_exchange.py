"""The exchange over object references: workers and aggregators are actors, and the trainer only chains their calls.

A gradient travels from its worker to the aggregators, parameters from the aggregators to every worker, and neither
through the trainer: it passes on references to results that do not exist yet, up to AHEAD steps of them. Each
aggregator has neighbouring blocks of the vector. Where there are several, a step takes two calls of each: between them
they tell each other their blocks' square sums, so that all take the norm of the same blocks in the same order.

When a worker dies, every call that depends on its lost result fails, down the chain. The aggregators are then still at
the last step that was whole, and the rest is chained anew with the dead worker's shards dealt to the others. Since a
step is a pure function of parameters, step and shard, the weights come out the same. All aggregators commit a step, or
none: what the second call depends on is so small that it lies with the trainer.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.network import network_graph, parameter_layout
from worker.crew import Crew, Reference, Remote, Transport
from worker.errors import RemoteLost
from worker.exchange import merge
from worker.plan import StepPlan, StepReport
from worker.sampling import deal

Array = NDArray[Any]
AHEAD = 16
SILENCE_S = 10.0
SHARE_BYTES = 4 * 1024**2  # 3 ms at 10 Gbit/s: below that, what a second call a step costs is more than a share saves


class ObjectExchange:
    """Steps over the members of `crew`. Raises RemoteLost from any method when an aggregator is lost."""

    def __init__(
        self,
        plan: StepPlan,
        seed: int,
        crew: Crew,
        aggregators: Sequence[Remote],
        transport: Transport,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Of `aggregators`, no more are used than it takes (`shares_for`)."""
        self._plan, self._transport, self._clock, self._crew = plan, transport, clock, crew
        count = min(shares_for(plan), len(aggregators))
        self._aggregators = list(aggregators[:count])
        # The reference to each aggregator's part.
        self._parameters = [each.call("begin", plan, seed, k, count) for k, each in enumerate(self._aggregators)]
        self._committed = 0
        self._transport.get(self._parameters)

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
        waiting: deque[list[Reference]] = deque()
        for step in range(self._committed + 1, target + 1):
            waiting.append(self._step(step))
            if len(waiting) > AHEAD:
                yield self._get(waiting.popleft())[0]
        while waiting:
            yield self._get(waiting.popleft())[0]

    def _step(self, step: int) -> list[Reference]:
        """The references to the step's report, one of each aggregator."""
        shares = len(self._aggregators)
        gradients: list[list[Reference]] = [[None] * self._plan.shards for _ in range(shares)]
        reports = []
        for worker, shards in self._dealt():
            *found, report = worker.call("gradients", step, shards, *self._parameters, returns=len(shards) * shares + 1)
            reports.append(report)
            for k, shard in enumerate(shards):
                for share in range(shares):
                    gradients[share][shard] = found[k * shares + share]
        if shares == 1:
            committed = [self._aggregators[0].call("apply_parts", step, *gradients[0], *reports, returns=2)]
        else:
            pairs = zip(self._aggregators, gradients, strict=True)
            reduced = [each.call("reduce_parts", step, *parts, *reports) for each, parts in pairs]
            committed = [
                each.call("commit_parts", step, shares, *reduced, *reports, returns=2) for each in self._aggregators
            ]
        self._parameters = [parameters for parameters, _ in committed]
        return [report for _, report in committed]

    def _missed(self, known: int) -> list[StepReport]:
        """The reports of steps after `known` that the aggregators have committed."""
        missed, *others = self._transport.get(self._all("reports_after", known))
        if any(other != missed for other in others):
            raise RemoteLost("the aggregators are not at the same step")
        if missed:
            self._committed = missed[-1].step
        self._parameters = self._all("parameters")
        return list(missed)

    def evaluate(self, split: str, which: str = "current") -> NDArray[np.float64]:
        network = self._plan.network
        while True:
            try:
                parameters, dealt = self._all("parameters", which), self._dealt()
                calls = [worker.call("evaluations", split, shards, *parameters) for worker, shards in dealt]
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
                before, after = self._all("parameters", "previous"), self._all("parameters", "current")
                call = self._crew.members[0].call("diagnose_parts", self._committed, *before, *after)
                found: dict[str, float] = self._get([call])[0]
                return found
            except RemoteLost as error:
                self._recover(error)

    def keep_best(self) -> None:
        self._transport.get(self._all("keep_best"))

    def parameters(self, which: str = "current") -> Array:
        found: Array = np.concatenate(self._transport.get(self._all("parameters", which)))
        return found

    def snapshot(self) -> Array:
        found: Array = np.concatenate(self._transport.get(self._all("state")), axis=1)
        return found

    def restore(self, step: int, state: Array, best: Array | None) -> None:
        sizes = [part.size for part in self._transport.get(self._parameters)]
        borders = np.cumsum(sizes)[:-1]
        states = np.split(state, borders, axis=1)
        bests = [None] * len(sizes) if best is None else np.split(best, borders)
        parts = zip(self._aggregators, states, bests, strict=True)
        self._parameters = [each.call("restore", step, *kept) for each, *kept in parts]
        self._transport.get(self._parameters)
        self._committed = step

    def close(self) -> None:
        self._parameters = []
        self._crew.close()
        for each in self._aggregators:
            try:
                self._transport.get([each.call("end")])
            except RemoteLost:
                continue  # it has nothing to let go any more

    def _all(self, method: str, *arguments: Any) -> list[Reference]:
        """The same call of every aggregator."""
        return [each.call(method, *arguments) for each in self._aggregators]

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
        if not dead or not all(self._transport.is_alive(each) for each in self._aggregators):
            raise error
        self._crew.lose(dead, self._committed + 1, error, began)

    def _dealt(self) -> list[tuple[Remote, tuple[int, ...]]]:
        """The workers that have shards, with them."""
        members = self._crew.members
        dealt = zip(members, deal(self._plan.shards, len(members)), strict=True)
        return [(worker, shards) for worker, shards in dealt if shards]


def shares_for(plan: StepPlan) -> int:
    """So many aggregators that none has more than SHARE_BYTES of gradients a step, as far as there are blocks.

    One where the plan limits units' norms, which go across blocks.
    """
    if plan.optimizer.max_norm is not None:
        return 1
    layout = parameter_layout(network_graph(plan.network))
    gradients = plan.shards * layout.size * np.dtype(plan.network.dtype).itemsize
    return min(len(layout.blocks), -(-gradients // SHARE_BYTES))
