"""Processes of this machine by their pidfds: a death is seen at once, and no signal can reach another process's pid."""

import contextlib
import os
import select
import signal
from collections.abc import Mapping


class Pidfds:
    """A pidfd for each process that is watched, by a name."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    def watch(self, pids: Mapping[str, int]) -> None:
        """From now on watch these, and no others. ProcessLookupError for one that is gone and was not watched yet."""
        for name in self._descriptors.keys() - pids.keys():
            os.close(self._descriptors.pop(name))
        for name, pid in pids.items():
            if name not in self._descriptors:
                self._descriptors[name] = os.pidfd_open(pid)

    def has_ended(self, name: str, wait_ms: int | None = 0) -> bool:
        """Whether the process has ended, or does so within `wait_ms` (None: wait until it has)."""
        poller = select.poll()
        poller.register(self._descriptors[name], select.POLLIN)
        return bool(poller.poll(wait_ms))

    def ended(self) -> set[str]:
        """All that have ended, in one system call: it is asked while steps run."""
        poller, names = select.poll(), {descriptor: name for name, descriptor in self._descriptors.items()}
        for descriptor in names:
            poller.register(descriptor, select.POLLIN)
        return {names[descriptor] for descriptor, _ in poller.poll(0)}

    def kill(self, name: str) -> None:
        """End the process, and wait until it is gone: a stopped one too."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptors[name], signal.SIGKILL)
        self.has_ended(name, None)

    def close(self) -> None:
        """Watch nobody any more."""
        self.watch({})
