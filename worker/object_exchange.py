"""The exchange over object references: workers and aggregators are actors, and the trainer only chains their calls.

A gradient travels from its worker to the aggregators, parameters from the aggregators to every worker, and neither
through the trainer: it passes on references to results that do not exist yet, up to AHEAD steps of them. Each
aggregator has neighbouring blocks of the vector. Where there are several, a step takes two calls of each: between them
they tell each other their blocks' square sums, so that all take the norm of the same blocks in the same order.

When a worker dies, every call that depends on its lost result fails, down the chain. The aggregators are then still at
the last step that was whole, and the rest is chained anew with the dead worker's shards dealt to the others. Since a
step is a pure function of parameters, step and shard, the weights come out the same. All aggregators commit a step, or
none: what the second call depends on is so small that it lies with the trainer.

It needs no port of its own, and takes many times as long as sockets (worker.socket_exchange).
"""

import math
from collections import deque
from collections.abc import Iterator

import numpy as np

from core.network import network_graph, parameter_layout
from worker.errors import RemoteLost
from worker.plan import StepPlan, StepReport
from worker.remote_exchange import RemoteExchange
from worker.transport import Reference

AHEAD = 16
SHARE_BYTES = 4 * 1024**2  # 3 ms at 10 Gbit/s: below that, what a second call a step costs is more than a share saves


class ObjectExchange(RemoteExchange):
    """Steps over the members of `crew`. Raises RemoteLost from any method when an aggregator is lost."""

    @classmethod
    def most_shares(cls, plan: StepPlan) -> int:
        """So many that none has more than SHARE_BYTES of gradients a step."""
        size, dtype = parameter_layout(network_graph(plan.network)).size, np.dtype(plan.network.dtype)
        return math.ceil(plan.shards * size * dtype.itemsize / SHARE_BYTES)

    def _open(self) -> None:
        self._parameters: list[Reference] = self._all("parameters")  # each aggregator's part

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

    def close(self) -> None:
        self._parameters = []
        super().close()

    def _changed(self) -> None:
        self._open()

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
