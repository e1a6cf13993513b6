"""The workers of one job: who takes part, who is about to, who was lost. What every exchange over processes needs.

A worker takes part once it has attached and proved that it computes the same bits as the first. So many as are wanted
take part: for one that dies another is recruited, and joins between two steps when it is ready; more than
FAILURES_ALLOWED deaths a minute end the job. Where too many take part, the surplus leaves between two steps.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from worker.errors import RemoteLost, TooManyFailures
from worker.exchange import Tell
from worker.plan import Attached, StepPlan, TrainerEvent
from worker.transport import Reference, Remote, Transport, results

FAILURES_ALLOWED, FAILURE_WINDOW_S = 30, 60.0
GATHER_S = 10.0  # a job begins without those that have not attached by then, if others have
JOIN_S = 60.0  # a recruit that has not attached by then is asked whether it lives, and replaced where it does not
AGAIN_S = 1.0  # where no worker was to be had, so long until the next try
RARELY = 20  # ... or so many times what it took: where somebody who is asked is silent, steps would wait for each try
LATE_ASKS = 30  # so often, one JOIN_S after the other: who lives and has not attached by then never will
LOOK_S = 0.2  # who waits for workers asks so often whether to go on


@dataclass(frozen=True)
class _Joining:
    """A worker that was asked to attach at `since`, by the crew's clock."""

    worker: Remote
    call: Reference
    since: float
    asks: int = 0  # whether it lives


class Crew:
    """Workers by their places: `members` take part, in an order that stays until one is lost, leaves or joins."""

    def __init__(
        self,
        plan: StepPlan,
        workers: Sequence[Remote],
        transport: Transport,
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
        look: Callable[[], None] = lambda: None,
        wanted: int | None = None,
    ) -> None:
        """Begins to attach `workers`; `admit` waits for them, and calls `look` meanwhile, which may raise.

        `wanted`: how many are to take part, where it is not just these.
        """
        self._plan, self._transport, self._tell, self._clock, self._look = plan, transport, tell, clock, look
        self._joining: list[_Joining] = []
        for worker in workers:
            self._attach(worker)
        self._lost_at: deque[float] = deque()
        self._try_again_at = clock()
        self._scaling: tuple[int, float] | None = None  # from how many, when it was asked for
        self.wanted = len(workers) if wanted is None else wanted  # so many are to take part
        self.members: list[Remote] = []
        self.attached: dict[str, Attached] = {}  # by the worker's name
        self.failures = 0
        self.numerics = ""
        self.only_machine: str | None = None  # where set, workers of other machines take no part

    def scale(self, workers: int) -> None:
        """Want so many, from 1 to one a shard: `admit` lets the surplus go, and those that are missing are recruited.

        An event tells when as many take part, where it has not been as many before.
        """
        self.wanted = max(1, min(workers, self._plan.shards))
        self._scaling = len(self.members), self._clock()
        self._try_again_at = self._clock()
        while self._joining and len(self.members) + len(self._joining) > self.wanted:
            self._transport.dismiss(self._joining.pop().worker)
        self._tell_scaled()

    def call_up(self) -> None:
        """Recruit as many as are missing, as far as there are any to be had."""
        self._ask_late()
        now = self._clock()
        while now >= self._try_again_at and len(self.members) + len(self._joining) < self.wanted:
            began = self._clock()
            worker = self._transport.recruit(beside=self.only_machine is not None)
            if worker is None:
                self._try_again_later(began)
                now = self._clock()
            else:
                self._attach(worker)

    @property
    def is_to_change(self) -> bool:
        """Whether `admit` would let somebody join or leave."""
        return len(self.members) > self.wanted or any(self._transport.is_ready(each.call) for each in self._joining)

    def admit(self, wait: bool) -> None:
        """Let workers that have attached take part, and the surplus leave, who all must be at nothing.

        `wait`: for all that are on their way, or GATHER_S where there is one by then; and as long as there is none.
        RemoteLost when no worker is left that may take part.
        """
        if wait:
            self._gather()
        self._admit_ready()
        while len(self.members) > self.wanted:
            worker = self.members.pop()
            self._transport.release(worker, worker.call("detach"))
        self._tell_scaled()

    def lose(self, dead: Sequence[Remote], step: int, error: Exception, began: float) -> None:
        """Go on without `dead`, who died in `step`; recruit as many. Waits for them only when nobody else is left.

        `began`: when the loss was noticed, by `clock`. Raises TooManyFailures.
        """
        self.members = [worker for worker in self.members if worker not in dead]
        for worker in dead:
            self._transport.dismiss(worker)
        self._count_failures(len(dead), error)
        if not self.members:
            self._try_again_at = self._clock()
        self.call_up()
        self.admit(wait=not self.members)
        cost_ms = round(1000 * (self._clock() - began))
        names = [worker.name for worker in dead]
        message = f"lost {', '.join(names)} in step {step}; its shards went to others within {cost_ms} ms"
        self._say("fault", "warning", message, {"workers": names, "step": step, "cost_ms": cost_ms})

    def alike(self, aggregators: Sequence[Remote]) -> list[Remote]:
        """Those that compute the members' bits: a norm is a product, too. RemoteLost where there is none.

        They may have been made just now: as long as a recruit is waited for, so are they.
        """
        found = results(self._transport, [each.call("numerics") for each in aggregators], aggregators, JOIN_S)
        for other, numerics in zip(aggregators, found, strict=True):
            if numerics != self.numerics:
                self._tell_refused(other, numerics)
        if self.numerics not in found:
            raise RemoteLost(f"no aggregator computes the bits of {self.numerics}")
        return [each for each, numerics in zip(aggregators, found, strict=True) if numerics == self.numerics]

    def close(self) -> None:
        """Let all of them go."""
        for each in self._joining:
            self._transport.dismiss(each.worker)
        for worker in self.members:
            try:
                results(self._transport, [worker.call("detach")], self.members)
            except RemoteLost:
                continue  # it has nothing to let go any more

    # Joining.

    def _attach(self, worker: Remote) -> None:
        self._joining.append(_Joining(worker, worker.call("attach", self._plan), self._clock()))

    def _ask_late(self) -> None:
        """Who takes a large dataset in is waited for: another one would begin with that anew."""
        began = self._clock()
        is_ready = self._transport.is_ready
        late = [each for each in self._joining if began - each.since > JOIN_S and not is_ready(each.call)]
        if not late:
            return
        alive = self._transport.alive([each.worker for each in late])
        for each in late:
            self._joining.remove(each)
            data = {"worker": each.worker.name}
            if each.worker.name in alive and each.asks < LATE_ASKS:
                self._joining.append(replace(each, since=self._clock(), asks=each.asks + 1))
                message = f"{each.worker.name} is not ready after {JOIN_S:g} s more; it lives, and is waited for"
                self._say("log", "info", message, data)
            else:
                self._transport.dismiss(each.worker)
                waited_s = JOIN_S * (each.asks + 1)
                message = f"{each.worker.name} did not come up within {waited_s:g} s; another one is sought"
                self._say("fault", "warning", message, data)
        if len(alive) < len(late):
            self._try_again_later(began)  # who is silent has cost steps their time

    def _try_again_later(self, began: float) -> None:
        """Look for workers again after a look that has lasted since `began`."""
        now = self._clock()
        self._try_again_at = now + max(AGAIN_S, RARELY * (now - began) if self.members else 0.0)

    def _gather(self) -> None:
        """Wait, as `admit` says. The first members stand in the order of the workers, however soon each is ready."""
        began, told = self._clock(), False
        while self._joining or not self.members:
            is_late = self._clock() - began > GATHER_S
            waiting = [each.call for each in self._joining if not self._transport.is_ready(each.call)]
            if is_late or not waiting:
                self._admit_ready()
            if self.members and (is_late or not self._joining):
                return
            if not self.wanted:
                raise RemoteLost(f"no worker is left that computes the bits of {self.numerics}")
            if is_late and not told:
                told = True
                data = {"waited_seconds": round(self._clock() - began, 1), "wanted": self.wanted}
                self._say("log", "warning", "waiting for a worker: none has come up, or no worker slot is free", data)
            self._look()
            self.call_up()
            self._transport.wait([each.call for each in self._joining], LOOK_S)

    def _admit_ready(self) -> None:
        for each in list(self._joining):
            if self._transport.is_ready(each.call):
                self._joining.remove(each)
                self._admit_one(each.worker, each.call)

    def _admit_one(self, worker: Remote, call: Reference) -> None:
        try:
            found: Attached = self._transport.get([call])[0]
        except RemoteLost as error:
            self._transport.dismiss(worker)
            self._count_failures(1, error)
            self.call_up()
            return
        except Exception as error:  # the worker itself says so: its disk is full, say
            if not self.members and not self._joining:
                raise
            self._refuse(worker)
            data = {"worker": worker.name, "reason": str(error)}
            self._say("fault", "warning", f"{worker.name} takes no part, and no other in its place: {error}", data)
            return
        self.numerics = self.numerics or found.numerics
        if found.numerics == self.numerics and self.only_machine in (None, found.machine):
            self.members.append(worker)
            self.attached[worker.name] = found
            return
        self._refuse(worker)
        self._tell_refused(worker, found.numerics)

    def _refuse(self, worker: Remote) -> None:
        self._transport.dismiss(worker)
        self.wanted -= 1  # whoever came in its place might be of the same kind

    # Telling.

    def _tell_refused(self, other: Remote, numerics: str) -> None:
        differs = "is on another machine" if numerics == self.numerics else "computes other bits"
        data = {"worker": other.name, "numerics": numerics, "expected": self.numerics}
        self._say("fault", "warning", f"{other.name} {differs} than the rest, and takes no part", data)

    def _tell_scaled(self) -> None:
        """The event of a scaling that is complete."""
        if self._scaling is not None and len(self.members) == self.wanted:
            (before, began), self._scaling = self._scaling, None
            cost_ms = round(1000 * (self._clock() - began))
            if before != self.wanted:
                data = {"from": before, "to": self.wanted, "cost_ms": cost_ms}
                self._say("log", "info", f"scaled from {before} to {self.wanted} workers within {cost_ms} ms", data)

    def _say(self, kind: str, level: str, message: str, data: dict[str, Any]) -> None:
        self._tell(TrainerEvent(kind, level, message, data, time.time()))

    def _count_failures(self, count: int, error: Exception) -> None:
        now = self._clock()
        self.failures += count
        self._lost_at.extend([now] * count)
        while now - self._lost_at[0] > FAILURE_WINDOW_S:
            self._lost_at.popleft()
        if len(self._lost_at) > FAILURES_ALLOWED:
            raise TooManyFailures(len(self._lost_at), FAILURE_WINDOW_S) from error


class OverCrew:
    """What an exchange over a crew says of it, and passes on to it (`worker.exchange.Exchange`)."""

    _crew: Crew

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
