"""Workers as plain processes of this machine: what tests and benchmarks of exchanges use where Ray would be in the way.

Real processes, with pids of their own, to be killed.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import queue
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from numpy.typing import NDArray

from worker.errors import RemoteLost
from worker.gradient_worker import GradientWorker
from worker.plan import ShardReport
from worker.transport import Remote

Array = NDArray[Any]
SLOWNESS = 4
ORPHANED_LOOK_S = 1.0
_FORK = multiprocessing.get_context("fork")


def _serve(connection: Connection, kind: type, parent: int) -> None:
    """Calls run one after the other, in a thread of their own; those beside them at once, in this one."""
    target, calls = kind(), queue.SimpleQueue[tuple[int, str, tuple[Any, ...]]]()
    lock = threading.Lock()

    def answer(number: int, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            found: tuple[int, bool, Any] = (number, True, getattr(target, method)(*arguments))
        except Exception as error:
            found = (number, False, error)
        with lock:
            connection.send(found)

    def work() -> None:
        while True:
            answer(*calls.get())

    threading.Thread(target=work, daemon=True).start()
    while True:
        # A killed parent leaves no end of file: workers that were forked later hold its end of the pipe, too.
        while not connection.poll(ORPHANED_LOOK_S):
            if os.getppid() != parent:
                return
        try:
            beside, *call = connection.recv()
        except EOFError:
            return
        if beside:
            answer(*call)
        else:
            calls.put(tuple(call))


class SlowedWorker(GradientWorker):
    """Computes each gradient SLOWNESS times: a worker on a processor of so much less speed."""

    def gradient(self, step: int, shard: int, parameters: Array, gradient: Array) -> ShardReport:
        for _ in range(SLOWNESS - 1):
            super().gradient(step, shard, parameters, gradient)
        return super().gradient(step, shard, parameters, gradient)


class Process:
    """A process as the exchange sees it."""

    def __init__(self, name: str, kind: type) -> None:
        self.name = name
        self.connection, theirs = _FORK.Pipe()
        self.process: BaseProcess = _FORK.Process(target=_serve, args=(theirs, kind, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        self.answers: dict[int, tuple[bool, Any]] = {}
        self.has_ended = False  # as far as its pipe has told
        self._calls = 0

    def call(self, method: str, *arguments: Any, returns: int = 1) -> Any:
        process, number, _ = reference = self._send(False, method, arguments)
        return reference if returns == 1 else [(process, number, part) for part in range(returns)]

    def call_beside(self, method: str, *arguments: Any) -> "Reference":
        return self._send(True, method, arguments)

    def _send(self, beside: bool, method: str, arguments: tuple[Any, ...]) -> "Reference":
        self._calls += 1
        try:
            found = [result(each) if isinstance(each, tuple) and _is_reference(each) else each for each in arguments]
        except Exception as error:  # what it depends on is lost, or has failed: so is it
            self.answers[self._calls] = False, error
            return self, self._calls, None
        with contextlib.suppress(OSError):  # dead: `get` will say so
            self.connection.send((beside, self._calls, method, found))
        return self, self._calls, None

    def receive(self, wait: bool, number: int) -> bool:
        """Whether the answer to call `number` is there, or will never be."""
        while number not in self.answers:
            if not wait and not self.connection.poll(0):
                return False
            try:
                answered, fine, value = self.connection.recv()
            except (EOFError, OSError):
                self.has_ended = True
                return True
            self.answers[answered] = (fine, value)
        return True


Reference = tuple[Process, int, int | None]  # whose call, its number, and which part of its result; None: all


def _is_reference(value: tuple[Any, ...]) -> bool:
    return bool(value) and isinstance(value[0], Process)


def result(reference: Reference) -> Any:
    """What a call has come to, waited for, or what it has raised: RemoteLost where its process has ended."""
    process, number, part = reference
    process.receive(True, number)
    if number not in process.answers:
        raise RemoteLost(f"{process.name} has ended")
    fine, value = process.answers[number]  # which may be asked for again, as Ray's may
    if not fine:
        raise value
    return value if part is None else value[part]


class Processes:
    """The transport of such workers."""

    def __init__(self, kind: type = GradientWorker) -> None:
        self.all: list[Process] = []
        self.released: list[str] = []
        self._kind = kind

    def recruit(self, kind: type | None = None, beside: bool = True) -> Remote:
        """A new worker, of another `kind` than the rest where one is given."""
        self.all.append(Process(f"process-{len(self.all)}", kind or self._kind))
        return self.all[-1]

    def get(self, references: Sequence[Reference]) -> list[Any]:
        return [result(reference) for reference in references]

    def wait(self, references: Sequence[Reference], seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not any(map(self.is_ready, references)):  # what comes may be the answer to another call
            left = until - time.monotonic()
            if left <= 0:
                return False
            multiprocessing.connection.wait([process.connection for process, *_ in references], left)
        return True

    def is_ready(self, reference: Reference) -> bool:
        return reference[0].receive(False, reference[1])

    def address(self, remote: Remote) -> str:
        return "127.0.0.1"

    def alive(self, remotes: Sequence[Remote]) -> set[str]:
        asked = [self.remote(remote.name) for remote in remotes]
        # The system tells a little later than the pipe.
        return {each.name for each in asked if not each.has_ended and each.process.is_alive()}

    def remote(self, name: str) -> Process:
        return next(process for process in self.all if process.name == name)

    def forget_leavers(self) -> None:
        """Nobody keeps a list of them."""

    def release(self, remote: Remote, detached: Reference) -> None:
        self.released.append(remote.name)

    def dismiss(self, remote: Remote) -> None:
        self.remote(remote.name).process.kill()

    def close(self) -> None:
        """End all of them."""
        for process in self.all:
            process.process.kill()
            process.process.join()
            process.process.close()
            process.connection.close()
