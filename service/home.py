"""The service's home folder, as something that one supervisor at a time may have."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from service.errors import ServiceError
from service.parts import run_folder


class ServeError(ServiceError):
    """The service cannot be started: `reason` says why, and what to do."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Holds the home's lock. Raises `ServeError` where another process does. However a process ends, its lock goes."""
    run_folder(home).mkdir(exist_ok=True)
    with (run_folder(home) / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip()
            raise ServeError(f"{home} is in use by process {owner}: end it, or set FALLLINE_HOME to another") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def new_ray_folder(home: Path) -> Path:
    """A folder for Ray's sockets and scratch files: in /tmp, since a socket's path ends near 107 bytes.

    `run/ray` leads there. The last one of this home goes: where the whole service was killed, nobody else is left to.
    """
    link = run_folder(home) / "ray"
    if link.is_symlink():
        shutil.rmtree(os.readlink(link), ignore_errors=True)
        link.unlink()
    folder = Path(tempfile.mkdtemp(prefix="fallline-", dir="/tmp"))
    link.symlink_to(folder)
    return folder
