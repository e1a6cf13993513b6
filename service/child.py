"""A process of the service under its launcher, as the supervisor holds it: start, look, ask to end, kill, trim."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from service import disk, launcher
from service.embedded import Command

LOG_BYTES = 10 * 1024**2


class Child:
    """One running command. It ends with this object's process, whatever happens to that."""

    def __init__(self, command: Command, log: Path, grace: float) -> None:
        """Starts it; its output goes to the end of `log`. `grace`: seconds between being asked to end and being killed.

        The launcher gets a session of its own: a terminal's Ctrl-C is for the supervisor alone.
        """
        remove = "-" if command.remove is None else str(command.remove)
        with log.open("ab") as output:
            self._launcher = subprocess.Popen(
                [sys.executable, "-I", "-S", launcher.__file__, str(grace), remove, *command.arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=command.environment,
                cwd=command.folder,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The launcher's; the command is its child."""
        return self._launcher.pid

    def poll(self) -> int | None:
        """The command's exit code (128 + signal for a killed one) once nothing of it is left, else None."""
        code = self._launcher.poll()
        if code is None:
            return None
        self.end()  # of no use any more: one descriptor less
        return code if code >= 0 else 128 - code  # the latter: the launcher itself was killed

    def end(self) -> None:
        """Asks it to end; what has not by the end of its grace is killed. Returns at once."""
        assert self._launcher.stdin is not None
        self._launcher.stdin.close()

    def kill(self) -> None:
        """Kills it and all it has started, without grace. Returns at once."""
        self._launcher.terminate()  # first: the end of its input alone would give the command a moment to react
        self.end()

    def wait(self, timeout: float) -> int:
        """Waits until nothing of it is left. Raises `subprocess.TimeoutExpired`."""
        return self._launcher.wait(timeout)


def trim_log(log: Path, limit: int = LOG_BYTES) -> None:
    """Keeps a log that is being written below `limit` bytes: its content moves to `<name>.1`, in the place of the last.

    The writers append (O_APPEND), so they go on at the new end. A line that comes during the copy may be lost; where
    the disk has no room for a copy, all is.
    """
    if log.exists() and log.stat().st_size > limit:
        older = log.with_name(f"{log.name}.1")
        try:
            shutil.copyfile(log, older)
        except OSError as error:
            if not disk.is_full(error):
                raise
            older.unlink(missing_ok=True)
        os.truncate(log, 0)
