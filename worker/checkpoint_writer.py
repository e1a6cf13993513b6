"""Checkpoints written beside training: the trainer hands over copies and goes on, a thread waits for the disk."""

import threading
from collections.abc import Callable
from types import TracebackType

from worker.checkpoint import Checkpoint, CheckpointDescription
from worker.checkpoint_store import CheckpointStore


class CheckpointWriter:
    """At most one write is in flight and one checkpoint waits; a newer one takes the place of the one that waits.

    An error of a write is raised by the next call, which does its own work all the same; later errors that nobody has
    been told of yet are notes on the first. The thread lives as long as there is something to write; an interpreter
    that ends waits for it.
    """

    def __init__(
        self, store: CheckpointStore, on_saved: Callable[[CheckpointDescription], None] = lambda description: None
    ) -> None:
        """`on_saved` is called in the writing thread, after each write."""
        self._store, self._on_saved = store, on_saved
        self._changed = threading.Condition()
        self._waiting: Checkpoint | None = None
        self._writing = self._closed = False
        self._error: BaseException | None = None

    def write(self, checkpoint: Checkpoint) -> None:
        """Have it written; nobody may write into its arrays from now on. Raises what an earlier write ended with."""
        with self._changed:
            if self._closed:
                raise ValueError(f"step {checkpoint.step}: the checkpoint writer is closed")
            self._waiting = checkpoint
            if not self._writing:
                threading.Thread(target=self._run, name="CheckpointWriter").start()
                self._writing = True
            self._tell()

    def flush(self) -> None:
        """Wait until everything handed over is on the disk. Raises what a write ended with."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writing)
            self._tell()

    def close(self) -> None:
        """`flush`; nothing is taken on afterwards."""
        with self._changed:
            self._closed = True
        self.flush()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while (checkpoint := self._next()) is not None:
            try:
                self._on_saved(self._store.save(checkpoint))
            except BaseException as error:  # whatever it is, it is raised where somebody hears it
                self._keep(error)

    def _next(self) -> Checkpoint | None:
        with self._changed:
            found, self._waiting = self._waiting, None
            if found is None:
                self._writing = False
                self._changed.notify_all()
            return found

    def _keep(self, error: BaseException) -> None:
        with self._changed:
            if self._error is None:
                self._error = error
            else:
                self._error.add_note(f"and then: {error}")

    def _tell(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
