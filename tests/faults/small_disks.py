"""Small disks for a test, full ones among them: tmpfs, mounted where this process and what it starts alone see them."""

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CLONE_NEWNS = 0x00020000  # from linux/sched.h
_PIECES = (1 << 20, 1 << 12)  # bytes; a page is what tmpfs deals out


def see_mounts_alone() -> None:
    """From here on, what this process mounts is seen by it and its children alone, and gone when they are.

    Skips the test where the system does not permit that.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        pytest.skip(f"this process may not mount: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of that size at `folder`. Call `see_mounts_alone` before."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"this process may not mount: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def filled(folder: Path, leave: int = 0) -> Iterator[None]:
    """The disk at `folder` has `leave` bytes left, at first; it heals at the end."""
    filler = folder / "filler"
    with filler.open("xb") as file:
        try:
            _grow(file.fileno(), shutil.disk_usage(folder).free - leave, exactly=leave > 0)
            yield
        finally:
            filler.unlink()


def _grow(descriptor: int, size: int, exactly: bool) -> None:
    """To `size` bytes; or, where others write at the same time, as far as it goes."""
    at = 0
    if exactly:
        os.posix_fallocate(descriptor, 0, size)
        return
    for piece in _PIECES:
        try:
            while True:
                os.posix_fallocate(descriptor, at, piece)
                at += piece
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
