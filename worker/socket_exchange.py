"""The exchange over sockets: workers and aggregators do the steps among themselves; the trainer starts and watches.

A stretch of steps is one call of each worker and each aggregator. Inside it gradients and parameters travel over links
of their own (`worker.links`), and nobody calls anybody. Each aggregator has neighbouring blocks of the vector and
stands beside workers, so that all nodes' links and cores share what there is to send, to add up and to update.

Links hold for a generation: who joins, leaves or is lost ends it. When a link breaks, whoever sees it breaks all of its
own, so that all calls come back at once; of a host that is cut off nobody hears, and the trainer's silence ends it: it
has the others give the generation up. The aggregators then all commit the step that some have committed
(`worker.wiring.settle`), and the rest is done in the next generation.
"""

import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress

from worker.errors import LinkBroken, RemoteLost
from worker.plan import StepPlan, StepReport
from worker.remote_exchange import RemoteExchange
from worker.transport import Reference, await_one
from worker.wiring import Stretch, Wiring, settle

STRETCH = 1024  # steps, at most: the aggregators keep as many reports
FRUITLESS = 3  # so often in a row links may break though no step is committed and nobody is dead
OPENING_FRUITLESS = 1  # ... before the first step: they may never be linked


class SocketExchange(RemoteExchange):
    """Steps over the members of `crew`. Raises RemoteLost from any method when an aggregator is lost."""

    @classmethod
    def most_shares(cls, plan: StepPlan) -> int:
        """All: each takes some of what there is to send and to add up from its node's links and cores."""
        return sys.maxsize

    def _open(self) -> None:
        listening = [each.call("listen", self._transport.address(each)) for each in self._aggregators]
        self._places = tuple(self._get(listening, self._aggregators))
        self._secret = secrets.token_bytes(32)
        self._generation, self._fruitless, self._patience = 0, 0, OPENING_FRUITLESS
        self._wired: list[str] = []  # the workers of the current generation
        self._wiring: Wiring | None = None
        while self._wiring is None:
            self._stretch(0)
        self._patience = FRUITLESS

    def run_steps(self, count: int) -> list[StepReport]:
        target, reports = self._committed + count, list[StepReport]()
        self._crew.call_up()
        self._crew.admit(wait=False)
        while self._committed < target:
            try:
                reports += self._stretch(min(target, self._committed + STRETCH))
            except LinkBroken as error:
                raise RemoteLost(str(error)) from error
        return reports

    def _stretch(self, last: int) -> list[StepReport]:
        """The reports of the steps after the committed one, up to `last` or a loss. Raises LinkBroken where nobody is
        lost, and yet they cannot be linked."""
        calls = self._called(last)
        try:
            found = self._results(calls)
        except (RemoteLost, LinkBroken) as error:
            return self._begin_again(error, calls)
        except BaseException:
            self._give_up()  # who waits to be linked with the one that has failed would do so for ever
            raise
        self._committed, self._fruitless = last, 0
        return list(found[0].reports)

    def _called(self, last: int) -> list[Reference]:
        """The calls that do the steps after the committed one up to `last`, the aggregators' first."""
        first, dealt = self._committed + 1, self._dealt()
        names = [worker.name for worker, _ in dealt]
        if self._wiring is None or names != self._wired:
            self._generation += 1
            self._wired = names
            machines = tuple(self._crew.attached[name].machine for name in names)
            shards = tuple(shards for _, shards in dealt)
            self._wiring = Wiring(self._generation, self._secret, self._places, machines, shards)
        calls = [each.call("serve", self._wiring, first, last) for each in self._aggregators]
        return calls + [worker.call("serve", self._wiring, k, first, last) for k, (worker, _) in enumerate(dealt)]

    def _results(self, calls: Sequence[Reference]) -> list[Stretch]:
        """What the calls have come to. Raises as soon as one has come to nothing: others may wait for it for ever."""
        found: dict[int, Stretch] = {}
        while len(found) < len(calls):
            waiting = [k for k in range(len(calls)) if k not in found]
            await_one(self._transport, [calls[k] for k in waiting], self._everybody)
            for k in waiting:
                if self._transport.is_ready(calls[k]):
                    stretch: Stretch = self._transport.get([calls[k]])[0]
                    if stretch.broken is not None:
                        raise LinkBroken(*stretch.broken)
                    found[k] = stretch
        return [found[k] for k in range(len(calls))]

    def _begin_again(self, error: RemoteLost | LinkBroken, calls: Sequence[Reference]) -> list[StepReport]:
        """Have everybody who is left at the same step, and at nothing; the reports that are not known yet. Raises
        `error` where nobody can go on, and what a call has raised that is no loss: Diverged, say."""
        began = self._clock()
        self._changed()
        self._give_up()
        for call in calls:
            with suppress(RemoteLost):  # `_recover` finds out who
                self._get([call])
        late, reduced = settle(self._of_all("standing"))
        self._get([self._aggregators[number].call("commit_kept", reduced) for number in late], self._aggregators)
        reports = self._missed(self._committed)
        if reports:
            self._fruitless = 0
        try:
            self._recover(error, began)
        except LinkBroken:  # nobody is dead, and it may have been an accident
            self._fruitless += not reports
            if self._fruitless > self._patience:
                raise
        return reports

    def _give_up(self) -> None:
        """Have everybody leave what is done for this generation."""
        for each in self._everybody:
            each.call_beside("give_up", self._generation)

    def _changed(self) -> None:
        """Links carry what the last step has led to: others have to be made."""
        self._wiring = None
