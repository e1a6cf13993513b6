"""How much memory this machine, or the container, gives its processes."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")  # control groups version 2, as containers see theirs
_MEMINFO = Path("/proc/meminfo")


def total_bytes(cgroup: Path = _CGROUP) -> int:
    """Physical memory, or what the container may use of it."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _number(cgroup / "memory.max")
    return physical if limit is None else min(physical, limit)


def available_bytes(cgroup: Path = _CGROUP) -> int:
    """What can be taken now without pushing out anything in use: Linux's own estimate, or what the container has left.

    A container is charged for the files that it has read, too: those pages go as soon as the memory is wanted.
    """
    fields = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, charged = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is None or charged is None:
        return free
    used = max(charged - _inactive_file(cgroup / "memory.stat"), 0)
    return min(free, max(limit - used, 0))


def _number(path: Path) -> int | None:
    """What the file holds; None without a limit: the file is missing, or says max."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return None if text == "max" else int(text)


def _inactive_file(path: Path) -> int:
    """Bytes of files' pages that nobody has looked at lately; 0 where the statistics cannot be had."""
    try:
        fields = dict(line.split() for line in path.read_text().splitlines())
    except OSError:
        return 0
    return int(fields.get("inactive_file", 0))
