"""Prepared arrays on a node without them: fetched whole, once, by their hash, and gone when others need the room."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from worker import fetched
from worker.dataset import MANIFEST, DatasetError, PreparedDataset, prepare
from worker.fetched import prepared_here, read_chunk
from worker.plan import TrainingPlan

MakePlan = Callable[..., TrainingPlan]


@pytest.fixture
def there(make_plan: MakePlan) -> PreparedDataset:
    """On the trainer's machine."""
    return prepare(make_plan().data)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This node's, whose home has nothing of the trainer's; chunks are small."""
    monkeypatch.setenv("FALLLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fetched, "CHUNK_BYTES", 1000)
    return tmp_path / "home" / "fetched"


class Reader:
    """Reads from the trainer's disk, and counts. `break_at`: the call, from 1, that fails; `flips`: those that lie."""

    def __init__(self, folder: Path, break_at: int = 0, flips: tuple[int, ...] = ()) -> None:
        self.read, self.calls, self.break_at, self.flips = partial(read_chunk, str(folder)), 0, break_at, flips
        self.bytes = 0

    def __call__(self, name: str, offset: int) -> bytes:
        self.calls += 1
        if self.calls == self.break_at:
            raise ConnectionError(name)
        chunk = self.read(name, offset)
        self.bytes += len(chunk)
        assert len(chunk) <= 1000
        return bytes([chunk[0] ^ 1]) + chunk[1:] if chunk and self.calls in self.flips else chunk


def size_of(entry: PreparedDataset) -> int:
    return sum(path.stat().st_size for path in entry.folder.iterdir())


def arrays(found: PreparedDataset) -> list[bytes]:
    return [array.tobytes() for split in found.rows for array in found.arrays(split) if array is not None]


def fetch(there: PreparedDataset, reader: Any) -> list[bytes]:
    with prepared_here(str(there.folder), there.sha256, reader) as found:
        assert found.folder != there.folder
        return arrays(found)


def test_what_is_fetched_is_the_same_and_is_fetched_once(there: PreparedDataset, cache: Path) -> None:
    reader = Reader(there.folder)
    assert fetch(there, reader) == arrays(there)
    assert reader.bytes == size_of(there)
    calls = reader.calls
    assert fetch(there, reader) == arrays(there)
    assert reader.calls == calls
    assert sorted(path.name for path in cache.iterdir()) == [there.sha256, f"{there.sha256}.lock"]


def test_workers_of_one_node_fetch_once_between_them(there: PreparedDataset, cache: Path) -> None:
    reader, found = Reader(there.folder), list[bool]()
    threads = [threading.Thread(target=lambda: found.append(fetch(there, reader) == arrays(there))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (found, reader.bytes) == ([True] * 4, size_of(there))


@pytest.mark.parametrize("at", [1, 3, 9, 17])
def test_one_that_was_cut_short_goes_on_where_it_ended(there: PreparedDataset, cache: Path, at: int) -> None:
    cut, reader = Reader(there.folder, break_at=at), Reader(there.folder)
    with pytest.raises(ConnectionError):
        fetch(there, cut)
    assert not (cache / there.sha256).exists()
    assert fetch(there, reader) == arrays(there)
    manifest = (there.folder / MANIFEST).stat().st_size
    assert cut.bytes + reader.bytes == size_of(there) + (manifest if cut.bytes >= manifest else cut.bytes)


def test_what_was_damaged_on_its_way_is_fetched_again(there: PreparedDataset, cache: Path) -> None:
    first = 2 + -(-(there.folder / MANIFEST).stat().st_size // 1000)  # the first chunk after the manifest
    assert fetch(there, Reader(there.folder, flips=(first,))) == arrays(there)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def recount(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dropped_rows": 77}))


def empty(path: Path) -> None:
    """As after a power loss."""
    os.truncate(path, 0)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("features.train.npy", flip),
        ("targets.test.npy", Path.unlink),
        (MANIFEST, Path.unlink),
        (MANIFEST, recount),
        (MANIFEST, empty),
    ],
)
def test_an_entry_that_was_damaged_on_the_disk_is_fetched_again(
    there: PreparedDataset, cache: Path, name: str, damage: Callable[[Path], None]
) -> None:
    fetch(there, Reader(there.folder))
    damage(cache / there.sha256 / name)
    reader = Reader(there.folder)
    assert fetch(there, reader) == arrays(there)
    assert reader.bytes == size_of(there)
    assert fetch(there, Reader(there.folder, break_at=1)) == arrays(there)


def test_an_entry_that_has_its_name_is_on_the_disk(
    there: PreparedDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, fsync, rename = list[str](), os.fsync, os.rename

    def synced(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def renamed(before: Path, after: Path) -> None:
        events.append("renamed")
        rename(before, after)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    fetch(there, Reader(there.folder))
    files = {path.name for path in there.folder.iterdir()}
    assert set(events[:-3]) == files
    assert events[-3:] == [f".{there.sha256}", "renamed", "fetched"]


def test_other_arrays_than_the_jobs_are_refused(there: PreparedDataset, cache: Path) -> None:
    with (
        pytest.raises(DatasetError, match="other ones than the job's"),
        prepared_here(str(there.folder), "0" * 64, Reader(there.folder)),
    ):
        raise AssertionError("opened")
    always = Reader(there.folder, flips=tuple(range(8, 999)))
    with pytest.raises(DatasetError, match="not what its hash says, twice"):
        fetch(there, always)
    assert not (cache / there.sha256).exists()


def test_a_node_that_has_them_reads_them_where_they_are(
    there: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for home in (str(there.folder.parent.parent), None):
        if home is None:
            monkeypatch.delenv("FALLLINE_HOME", raising=False)
        else:
            monkeypatch.setenv("FALLLINE_HOME", home)
        with prepared_here(str(there.folder), there.sha256, Reader(there.folder, break_at=1)) as found:
            assert found.folder == there.folder


def test_the_cache_is_bounded_and_what_is_in_use_stays(
    make_plan: MakePlan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [prepare(make_plan(data={"split_seed": seed}).data) for seed in range(4)]
    monkeypatch.setenv("FALLLINE_NODE_CACHE_BYTES", str(int(2.5 * size_of(entries[0]))))

    def kept() -> list[int]:
        return [k for k, entry in enumerate(entries) if (cache / entry.sha256).exists()]

    for k in (0, 1):
        fetch(entries[k], Reader(entries[k].folder))
        os.utime(cache / entries[k].sha256, (k, k))
    fetch(entries[2], Reader(entries[2].folder))
    assert kept() == [1, 2]
    os.utime(cache / entries[2].sha256, (2, 2))
    with prepared_here(str(entries[1].folder), entries[1].sha256, Reader(entries[1].folder)) as mapped:
        os.utime(cache / entries[1].sha256, (1, 1))
        fetch(entries[3], Reader(entries[3].folder))
        assert kept() == [1, 3]
        assert arrays(mapped) == arrays(entries[1])


def test_what_is_larger_than_the_bound_is_refused_with_both_numbers(
    there: PreparedDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = size_of(there) - (there.folder / MANIFEST).stat().st_size
    monkeypatch.setenv("FALLLINE_NODE_CACHE_BYTES", str(size - 1))
    with pytest.raises(DatasetError, match=f"has {size:,} bytes; FALLLINE_NODE_CACHE_BYTES here is {size - 1:,}"):
        fetch(there, Reader(there.folder))
    assert not (cache / there.sha256).exists()
    monkeypatch.setenv("FALLLINE_NODE_CACHE_BYTES", str(size))
    fetch(there, Reader(there.folder))
    assert (cache / there.sha256).exists()


def test_what_the_disk_has_no_room_for_is_refused_before_it_is_fetched(
    there: PreparedDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what is there of it already."""
    usage, manifest = shutil.disk_usage("/"), (there.folder / MANIFEST).stat().st_size
    size = size_of(there) - manifest
    free = iter([size - 1, size, size - 1])  # each time it is asked
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=next(free)))
    with pytest.raises(
        DatasetError, match=f"{size:,} bytes of the dataset are still to come; its disk has {size - 1:,}"
    ):
        fetch(there, Reader(there.folder))
    with pytest.raises(ConnectionError):
        fetch(there, Reader(there.folder, break_at=manifest // 1000 + 4))
    fetch(there, Reader(there.folder))
    assert (cache / there.sha256).exists()
