"""How a trainer reaches the other processes of its job, whatever they are, and waits for what they come to."""

from collections.abc import Sequence
from typing import Any, Protocol

from worker.errors import RemoteLost

Reference = Any  # what a call returns at once, in place of its result
SILENCE_S = 10.0  # who has said nothing for so long is asked whether it lives


class Remote(Protocol):
    """A process that can be called. Calls of one caller run in their order."""

    name: str

    def call(self, method: str, *arguments: Any, returns: int = 1) -> Any:
        """A reference to the result, or a list of `returns` references to its parts. References are arguments, too."""

    def call_beside(self, method: str, *arguments: Any) -> Any:
        """As `call`, but at once, by another thread of the process, whatever it is at."""


class Transport(Protocol):
    """What turns references into results, and knows the processes."""

    def get(self, references: Sequence[Reference]) -> list[Any]:
        """The results. Raises RemoteLost if a process that they depend on died, or the error that the call raised."""

    def wait(self, references: Sequence[Reference], seconds: float) -> bool:
        """Whether `get` would not wait for one of them: at once when it would not, after `seconds` at most."""

    def address(self, remote: Remote) -> str:
        """Of the process's machine, as the others' processes reach it. RemoteLost: it is gone."""

    def alive(self, remotes: Sequence[Remote]) -> set[str]:
        """The names of those that still answer, all asked at once; who does not is killed."""

    def is_ready(self, reference: Reference) -> bool:
        """Whether `get` would not wait."""

    def recruit(self, beside: bool) -> Remote | None:
        """A worker that is nobody else's, on this process's own machine where it is to be `beside` it; its first answer
        may take a while. None: there is room for none now."""

    def release(self, remote: Remote, detached: Reference) -> None:
        """A worker is not this job's any more once the call `detached` is done: others may recruit it then."""

    def dismiss(self, remote: Remote) -> None:
        """End a worker that takes no part, or is dead already; it is not this job's any more."""


def results(
    transport: Transport, references: Sequence[Reference], asked: Sequence[Remote], silence_s: float | None = None
) -> list[Any]:
    """Results of calls that may take long: of who hangs, none; who has much to do is waited for (`await_one`)."""
    for reference in references:
        await_one(transport, [reference], asked, silence_s)
    return transport.get(references)


def await_one(
    transport: Transport, references: Sequence[Reference], asked: Sequence[Remote], silence_s: float | None = None
) -> None:
    """Until one of them is there. Where none comes for `silence_s` (None: SILENCE_S), `asked` are asked whether they
    live: who hangs is killed for that silence, and RemoteLost names them; who has much to do is waited for."""
    while not transport.wait(references, SILENCE_S if silence_s is None else silence_s):
        if silent := silent_among(transport, asked):
            raise RemoteLost(f"no answer from {', '.join(silent)}")


def silent_among(transport: Transport, asked: Sequence[Remote]) -> list[str]:
    """Who of them does not answer, by name: all are asked at once, so that many cost no more time than one."""
    alive = transport.alive(asked)
    return [each.name for each in asked if each.name not in alive]
