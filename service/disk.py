"""Room on the disks that the service writes to: how much there is, and whether jobs are to wait for more.

Nearly full is less free than a reserve; there is room again when half as much again is free, so that jobs are not
paused and resumed in turns. `shortage` and `too_large` decide purely; `look` is the I/O.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RESERVE_BYTES, RESERVE_SHARE = 500 * 10**6, 0.05  # the less of the two, unless the settings say otherwise
AGAIN = 1.5  # times the reserve: that is room again
LOOK_SECONDS = 1.0
WAITING = "waiting for room on the disk"  # how each reason begins


@dataclass(frozen=True)
class Disk:
    """One disk, by a `folder` on it: `free` bytes for this process, of `total`."""

    folder: str
    free: int
    total: int

    def reserve(self, setting: int | None) -> int:
        """Bytes that are to stay free; `setting` None: by the disk's size."""
        return min(RESERVE_BYTES, int(RESERVE_SHARE * self.total)) if setting is None else setting


def shortage(disks: Iterable[Disk], setting: int | None, before: str | None) -> str | None:
    """Why jobs are to wait, in words for their `status_reason`; None: there is room. `before`: what was said last."""
    for disk in disks:
        reserve = disk.reserve(setting)
        if disk.free < (reserve if before is None else AGAIN * reserve):
            return before or (
                f"{WAITING}: {in_mb(disk.free)} are free at {disk.folder}, less than the reserve of {in_mb(reserve)} "
                f"(FALLLINE_DISK_RESERVE_MB); jobs go on by themselves when {in_mb(AGAIN * reserve)} are free"
            )
    return None


def too_large(needs: Mapping[Disk, int], setting: int | None) -> tuple[Disk, int] | None:
    """The first disk that cannot take what it is to take and keep its reserve, and how many bytes that needs free."""
    for disk, size in needs.items():
        if disk.free < (needed := size + disk.reserve(setting)):
            return disk, needed
    return None


def look(folders: Sequence[Path]) -> dict[Path, Disk]:
    """The disk of each folder, the same one for those on one disk. A folder that is not there yet is its parent's."""
    disks: dict[int, Disk] = {}
    found = {}
    for folder in folders:
        place = folder
        while not place.exists():
            place = place.parent
        device = place.stat().st_dev
        if device not in disks:
            usage = shutil.disk_usage(place)
            disks[device] = Disk(os.fspath(place), usage.free, usage.total)
        found[folder] = disks[device]
    return found


def is_full(error: OSError) -> bool:
    """Whether a write failed for want of room, and not for any other reason."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def in_mb(size: float) -> str:
    """`12.3 MB`"""
    return f"{size / 1e6:,.1f} MB"


class DiskWatch:
    """Whether jobs are to wait for room on the disks of `folders`, looked at once a second at most."""

    def __init__(
        self, folders: Sequence[Path], setting: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folders, self._setting, self._clock = folders, setting, clock
        self._looked_at = -LOOK_SECONDS
        self._shortage: str | None = None

    def shortage(self) -> str | None:
        """Why, as `disk.shortage` has it; the same words until there is room again."""
        if (now := self._clock()) - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._shortage = shortage(look(self._folders).values(), self._setting, self._shortage)
        return self._shortage
