"""An exchange whose workers and aggregators are other processes, which the trainer calls: all but the steps.

The trainer has no parameters: each aggregator keeps those of its blocks, and hands them out.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.network import network_graph, parameter_layout
from worker.crew import Crew, OverCrew
from worker.errors import RemoteLost
from worker.exchange import merge
from worker.plan import StepPlan, StepReport
from worker.sampling import deal
from worker.transport import Reference, Remote, Transport, results, silent_among

Array = NDArray[Any]


class RemoteExchange(OverCrew, ABC):
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
        """Of `aggregators`, no more are used than there are blocks, and no more than `most_shares`; one where the plan
        limits units' norms, which go across blocks. LinkBroken where they cannot be linked with the members."""
        self._plan, self._transport, self._clock, self._crew = plan, transport, clock, crew
        blocks = len(parameter_layout(network_graph(plan.network)).blocks)
        most = 1 if plan.optimizer.max_norm is not None else min(blocks, self.most_shares(plan))
        self._aggregators = list(aggregators[:most])
        count = len(self._aggregators)
        begun = [each.call("begin", plan, seed, k, count) for k, each in enumerate(self._aggregators)]
        self._sizes = [part.size for part in self._get(begun, self._aggregators)]
        self._committed = 0
        self._open()

    @classmethod
    @abstractmethod
    def most_shares(cls, plan: StepPlan) -> int:
        """How many aggregators are worth their while."""

    @abstractmethod
    def _open(self) -> None:
        """Make ready for steps; the aggregators have begun. May raise LinkBroken."""

    @abstractmethod
    def run_steps(self, count: int) -> list[StepReport]:
        """Exchange.run_steps."""

    @abstractmethod
    def _changed(self) -> None:
        """The parameters are not what the last step has led to."""

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
        self._of_all("keep_best")

    def parameters(self, which: str = "current") -> Array:
        found: Array = np.concatenate(self._of_all("parameters", which))
        return found

    def snapshot(self) -> Array:
        found: Array = np.concatenate(self._of_all("state"), axis=1)
        return found

    def restore(self, step: int, state: Array, best: Array | None) -> None:
        borders = np.cumsum(self._sizes)[:-1]
        states = np.split(state, borders, axis=1)
        bests = [None] * len(states) if best is None else np.split(best, borders)
        parts = zip(self._aggregators, states, bests, strict=True)
        self._get([each.call("restore", step, *kept) for each, *kept in parts], self._aggregators)
        self._committed = step
        self._changed()

    def close(self) -> None:
        self._crew.close()
        for each in self._aggregators:
            try:
                self._get([each.call("end")])
            except RemoteLost:
                continue  # it has nothing to let go any more

    def _all(self, method: str, *arguments: Any) -> list[Reference]:
        """The same call of every aggregator."""
        return [each.call(method, *arguments) for each in self._aggregators]

    def _of_all(self, method: str, *arguments: Any) -> list[Any]:
        """Its results."""
        return self._get(self._all(method, *arguments))

    def _missed(self, known: int) -> list[StepReport]:
        """The reports of steps after `known` that the aggregators have committed."""
        missed, *others = self._of_all("reports_after", known)
        if any(other != missed for other in others):
            raise RemoteLost("the aggregators are not at the same step")
        if missed:
            self._committed = missed[-1].step
        self._changed()
        return list(missed)

    def _get(self, references: Sequence[Reference], asked: Sequence[Remote] | None = None) -> list[Any]:
        """Results of calls that may take long; `asked`, or everybody, is asked where they do (worker.transport)."""
        return results(self._transport, references, asked or self._everybody)

    @property
    def _everybody(self) -> tuple[Remote, ...]:
        return *self._crew.members, *self._aggregators

    def _recover(self, error: Exception, began: float | None = None) -> None:
        """Go on with the workers that are left, if a worker was what died; a new one joins at a later step.

        `began`: when it was noticed, if not now.
        """
        began = self._clock() if began is None else began
        silent = silent_among(self._transport, self._everybody)
        dead = [worker for worker in self._crew.members if worker.name in silent]
        if not dead or len(dead) < len(silent):  # an aggregator among them
            raise error
        self._crew.lose(dead, self._committed + 1, error, began)

    def _dealt(self) -> list[tuple[Remote, tuple[int, ...]]]:
        """The workers that have shards, with them."""
        members = self._crew.members
        dealt = zip(members, deal(self._plan.shards, len(members)), strict=True)
        return [(worker, shards) for worker, shards in dealt if shards]
