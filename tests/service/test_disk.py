"""When jobs wait for room on a disk, what does not fit on one, and which disks folders are on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service import disk
from service.disk import Disk, DiskWatch, look, shortage, too_large

MB = 10**6


@pytest.mark.parametrize(("total", "reserve"), [(64 * MB, 3_200_000), (10_000 * MB, 500 * MB), (10**12, 500 * MB)])
def test_the_reserve_suits_the_disk_unless_it_is_set(total: int, reserve: int) -> None:
    assert Disk("/a", 1, total).reserve(None) == reserve
    assert Disk("/a", 1, total).reserve(7) == 7


def test_jobs_wait_below_the_reserve_until_half_as_much_again_is_free() -> None:
    said: str | None = None
    seen = []
    for free in (100, 99, 100, 149, 150, 149, 100, 99):
        said = shortage([Disk("/a", free * MB, 1000 * MB)], 100 * MB, said)
        seen.append(said is not None)
    assert seen == [False, True, True, True, False, False, False, True]


def test_the_reason_tells_which_disk_and_how_much_and_stays() -> None:
    full = Disk("/b", 99 * MB, 1000 * MB)
    said = shortage([Disk("/a", 500 * MB, 1000 * MB), full], 100 * MB, None)
    assert said is not None
    for part in (disk.WAITING, "99.0 MB are free at /b", "reserve of 100.0 MB", "150.0 MB", "FALLLINE_DISK_RESERVE_MB"):
        assert part in said
    assert shortage([Disk("/b", 5 * MB, 1000 * MB)], 100 * MB, said) == said


def test_a_reserve_of_nothing_switches_it_off() -> None:
    assert shortage([Disk("/a", 0, 1000 * MB)], 0, None) is None


def test_what_is_written_must_leave_the_reserve() -> None:
    one, other = Disk("/a", 100 * MB, 1000 * MB), Disk("/b", 30 * MB, 1000 * MB)
    assert too_large({one: 80 * MB, other: 10 * MB}, 20 * MB) is None
    assert too_large({one: 80 * MB, other: 10 * MB + 1}, 20 * MB) == (other, 30 * MB + 1)


def test_folders_of_one_disk_are_one_and_those_to_come_are_their_parents(tmp_path: Path) -> None:
    found = look([tmp_path, tmp_path / "not" / "yet", Path("/dev/shm")])
    assert found[tmp_path] is found[tmp_path / "not" / "yet"]
    assert found[tmp_path].folder == str(tmp_path)
    assert found[Path("/dev/shm")] is not found[tmp_path]
    assert 0 < found[tmp_path].free <= found[tmp_path].total


def test_the_disks_are_looked_at_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    frees: Iterator[int] = iter([1, 500])
    now = [0.0]

    def looked(folders: Any) -> dict[Path, Disk]:
        return {Path("/a"): Disk("/a", next(frees), 1000)}

    monkeypatch.setattr(disk, "look", looked)
    watch = DiskWatch([Path("/a")], 100, lambda: now[0])
    assert watch.shortage() is not None
    now[0] = 0.9
    assert watch.shortage() is not None
    now[0] = 1.0
    assert watch.shortage() is None
