"""How much memory this machine gives its processes."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup/memory.max")  # of control groups version 2, as containers see theirs


def memory_bytes(cgroup: Path = _CGROUP) -> int:
    """Physical memory, or what the container may use of it: bytes."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = cgroup.read_text().strip()
    except OSError:
        return physical  # no container, or an older kind of control group
    return physical if limit == "max" else min(physical, int(limit))
