"""The workers of one job: who takes part, who is about to, who was lost. What every exchange over processes needs.

A worker takes part once it has attached and proved that it computes the same bits as the first. For one that dies a new
one is recruited, and joins when it is ready; more than FAILURES_ALLOWED deaths a minute end the job.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from worker.errors import RemoteLost, TooManyFailures
from worker.exchange import Tell
from worker.plan import Attached, StepPlan, TrainerEvent

Reference = Any  # what a call returns at once, in place of its result
FAILURES_ALLOWED, FAILURE_WINDOW_S = 30, 60.0


class Remote(Protocol):
    """A process that can be called. Calls of one caller run in their order."""

    name: str

    def call(self, method: str, *arguments: Any, returns: int = 1) -> Any:
        """A reference to the result, or a list of `returns` references to its parts. References are arguments, too."""


class Transport(Protocol):
    """What turns references into results, and knows the processes."""

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


class Crew:
    """Workers by their places: `members` take part, in an order that stays until one is lost or joins."""

    def __init__(
        self,
        plan: StepPlan,
        workers: Sequence[Remote],
        transport: Transport,
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins to attach `workers`; `admit` waits for them."""
        self._plan, self._transport, self._tell, self._clock = plan, transport, tell, clock
        self._joining = [(worker, worker.call("attach", plan)) for worker in workers]
        self._lost_at: deque[float] = deque()
        self.members: list[Remote] = []
        self.attached: dict[str, Attached] = {}  # by the worker's name
        self.failures = 0
        self.numerics = ""
        self.only_machine: str | None = None  # where set, workers of other machines take no part

    @property
    def someone_is_ready(self) -> bool:
        """Whether `admit` would find a worker that has attached meanwhile."""
        return any(self._transport.is_ready(call) for _, call in self._joining)

    def admit(self, wait: bool) -> None:
        """Let workers that have attached take part. `wait`: for all that are on their way, and until there is one.

        RemoteLost when no worker is left that may take part.
        """
        while self._joining:
            for worker, call in list(self._joining):
                if wait or self._transport.is_ready(call):
                    self._joining.remove((worker, call))
                    self._admit_one(worker, call)
            if not wait or self.members:
                return
        if wait and not self.members:
            raise RemoteLost(f"no worker is left that computes the bits of {self.numerics}")

    def lose(self, dead: Sequence[Remote], step: int, error: Exception, began: float) -> None:
        """Go on without `dead`, who died in `step`; recruit as many. Waits for them only when nobody else is left.

        `began`: when the loss was noticed, by `clock`. Raises TooManyFailures.
        """
        self.members = [worker for worker in self.members if worker not in dead]
        self._count_failures(len(dead), error)
        for _ in dead:
            self._recruit()
        self.admit(wait=not self.members)
        cost_ms = round(1000 * (self._clock() - began))
        names = [worker.name for worker in dead]
        message = f"lost {', '.join(names)} in step {step}; its shards went to others within {cost_ms} ms"
        data = {"workers": names, "step": step, "cost_ms": cost_ms}
        self._tell(TrainerEvent("fault", "warning", message, data, time.time()))

    def close(self) -> None:
        """Let all of them go."""
        for worker, _ in self._joining:
            self._transport.dismiss(worker)
        for worker in self.members:
            try:
                self._transport.get([worker.call("detach")])
            except RemoteLost:
                continue  # it has nothing to let go any more

    def _admit_one(self, worker: Remote, call: Reference) -> None:
        try:
            found: Attached = self._transport.get([call])[0]
        except RemoteLost as error:
            self._count_failures(1, error)
            self._recruit()
            return
        self.numerics = self.numerics or found.numerics
        if found.numerics == self.numerics and self.only_machine in (None, found.machine):
            self.members.append(worker)
            self.attached[worker.name] = found
            return
        self._transport.dismiss(worker)
        data = {"worker": worker.name, "numerics": found.numerics, "expected": self.numerics}
        other = "is on another machine" if found.numerics == self.numerics else "computes other bits"
        message = f"{worker.name} {other} than the rest, and takes no part"
        self._tell(TrainerEvent("fault", "warning", message, data, time.time()))

    def _recruit(self) -> None:
        worker = self._transport.recruit()
        self._joining.append((worker, worker.call("attach", self._plan)))

    def _count_failures(self, count: int, error: Exception) -> None:
        now = self._clock()
        self.failures += count
        self._lost_at.extend([now] * count)
        while now - self._lost_at[0] > FAILURE_WINDOW_S:
            self._lost_at.popleft()
        if len(self._lost_at) > FAILURES_ALLOWED:
            raise TooManyFailures(len(self._lost_at), FAILURE_WINDOW_S) from error
