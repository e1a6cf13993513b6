"""Who a process is, so that another one can tell whether it is gone for sure. Linux: /proc."""

import os
import socket
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def identity() -> str:
    """`host:pid:started:namespace:boot` of this process; `started` in ticks since the boot."""
    pid, namespace = os.getpid(), os.stat("/proc/self/ns/pid").st_ino
    return f"{socket.gethostname()}:{pid}:{_started(pid)}:{namespace}:{_BOOT.read_text().strip()}"


def is_gone(other: str) -> bool:
    """Whether the process of that identity has ended. False where this machine cannot know."""
    _, pid, started, *where = other.split(":")
    if where != identity().split(":")[3:]:
        return False  # another kernel's, or another container's
    return _started(int(pid)) != int(started)


def _started(pid: int) -> int | None:
    """When the process was started; None: it has ended, though its parent may not have noticed."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # from the third on (man 5 proc)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
