"""One part of the service as the supervisor watches it: its command, its process, when it is started again."""

import time
from collections.abc import Callable
from pathlib import Path

from service.child import Child, trim_log
from service.embedded import Command

STEADY_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 15.0


def restart_pause(failures: int) -> float:
    """Seconds between an end and the next start: none after the first failure in a while, then ever more."""
    return 0.0 if failures <= 1 else min(LONGEST_PAUSE_SECONDS, 0.5 * 2.0 ** (failures - 2))


def ending(code: int) -> str:
    """An exit code in words."""
    return f"killed by signal {code - 128}" if code > 128 else f"ended with exit code {code}"


class SupervisedPart:
    """A command that is kept running. `build` is called at every start: a restart may need another port."""

    def __init__(self, name: str, build: Callable[[], Command], logs: Path, grace: float) -> None:
        self.name, self.build, self.grace = name, build, grace
        self.log = logs / f"{name}.log"
        self.child: Child | None = None
        self.failures = 0
        self.ended_with: int | None = None
        self._started_at = 0.0
        self._start_at = 0.0

    def start(self) -> None:
        """Starts it now."""
        trim_log(self.log)
        self.child = Child(self.build(), self.log, self.grace)
        self._started_at = time.monotonic()

    def start_in(self, seconds: float) -> None:
        """Has a later `look` start it, when so much time has passed."""
        self._start_at = time.monotonic() + seconds

    def age(self) -> float:
        """Seconds since the last start."""
        return time.monotonic() - self._started_at

    def look(self) -> str | None:
        """Notices an end, plans or makes the next start; returns what happened, in words, when something did."""
        now = time.monotonic()
        if self.child is None:
            if now >= self._start_at:
                self.start()
            return None
        code = self.child.poll()
        if code is None:
            trim_log(self.log)
            return None
        self.child, self.ended_with = None, code
        self.failures = 1 if now - self._started_at > STEADY_SECONDS else self.failures + 1
        pause = restart_pause(self.failures)
        self._start_at = now + pause
        again = f"again in {pause:g} s" if pause else "started again"
        return f"{self.name} {ending(code)}, {again} (see {self.log})"

    def restart(self) -> None:
        """Kills it; the next `look` finds it ended and starts it again."""
        if self.child is not None:
            self.child.kill()

    def end(self) -> None:
        """Asks it to end; see `Child.end`."""
        if self.child is not None:
            self.child.end()

    def kill(self) -> None:
        """Kills it; see `Child.kill`."""
        if self.child is not None:
            self.child.kill()

    def gone(self) -> bool:
        """Nothing of it is left."""
        return self.child is None or self.child.poll() is not None
