"""Who a process is, so that another one can tell whether it is gone for sure. Linux: /proc."""

import os
import socket
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def identity(pid: int | None = None) -> str:
    """`host:pid:started:namespace:boot` of a process, this one by default. Raises FileNotFoundError when it is gone."""
    number = os.getpid() if pid is None else pid
    started = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]  # in ticks since the boot
    namespace = os.stat("/proc/self/ns/pid").st_ino
    return f"{socket.gethostname()}:{number}:{started}:{namespace}:{_BOOT.read_text().strip()}"


def is_gone(other: str) -> bool:
    """Whether the process of that identity has ended. False where this machine cannot know."""
    here = identity()
    if other.split(":")[3:] != here.split(":")[3:]:
        return False  # another kernel's, or another container's
    try:
        return identity(int(other.split(":")[1])).split(":")[1:] != other.split(":")[1:]
    except (FileNotFoundError, ProcessLookupError):
        return True
