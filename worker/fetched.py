"""Prepared arrays on a node that has not got them: fetched from the trainer's, once for all workers of the node.

An entry's name is the hash of its manifest, which holds the hash of each file. It is fetched chunk by chunk into a
folder that is kept when the fetch is cut short, so that the next one goes on where it ended; it gets its name once all
of it is on the disk and has the right hash. One that is damaged when it is opened again is fetched anew. Entries that
were not used for longest make room for new ones.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from worker.dataset import MANIFEST, DatasetError, PreparedDataset, file_sha256, open_prepared
from worker.durable import sync_folder

CHUNK_BYTES = 4 * 1024**2  # so much of a file lies in Ray's object store at a time
CACHE_BYTES = 10 * 1024**3

Read = Callable[[str, int], bytes]  # a file's name, an offset -> at most CHUNK_BYTES from there on; none at its end


def read_chunk(folder: str, name: str, offset: int) -> bytes:
    """What `Read` gives, of the entry at `folder`, on the machine that has it."""
    with open(Path(folder) / Path(name).name, "rb") as file:
        file.seek(offset)
        return file.read(CHUNK_BYTES)


@contextmanager
def prepared_here(folder: str, sha256: str, read: Read | None) -> Iterator[PreparedDataset]:
    """The entry at the trainer's `folder`, whose manifest has the hash `sha256`: from there where this node has it, too
    (or there is nothing to `read` it with), else from the node's own cache. Map its arrays before the block ends.

    A node has a folder if its home, FALLLINE_HOME in the environment of its `ray start`, does. DatasetError where what
    is read is not what the hash says.
    """
    if read is None or _has(folder, sha256):
        yield open_prepared(folder)
        return
    cache = _home() / "fetched"
    cache.mkdir(parents=True, exist_ok=True)
    entry = cache / sha256
    for how in fcntl.LOCK_SH, fcntl.LOCK_EX:  # to see that it is whole a node's workers read all of it: side by side
        with _lock(cache, sha256, how):
            found = _whole(entry, sha256)
            if found is None and how == fcntl.LOCK_EX:
                with suppress(FileNotFoundError):
                    shutil.rmtree(entry)
                _fetch(entry, sha256, read)
                found = open_prepared(entry)
            if found is not None:
                os.utime(entry)
                yield found
                return


def _home() -> Path:
    return Path(os.environ.get("FALLLINE_HOME") or "~/.fallline").expanduser().absolute()


def _has(folder: str, sha256: str) -> bool:
    if "FALLLINE_HOME" in os.environ and not Path(folder).is_relative_to(_home()):
        return False
    try:
        return hashlib.sha256((Path(folder) / MANIFEST).read_bytes()).hexdigest() == sha256
    except OSError:
        return False


@contextmanager
def _lock(cache: Path, sha256: str, how: int) -> Iterator[None]:
    """Nobody else of this node fetches the entry meanwhile, or takes it away. It ends with the process."""
    descriptor = os.open(cache / f"{sha256}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _whole(entry: Path, sha256: str) -> PreparedDataset | None:
    """The entry, if it is there and no bit of it has changed since it was fetched."""
    with suppress(DatasetError, OSError):
        found = open_prepared(entry, check_hashes=True)
        return found if found.sha256 == sha256 else None
    return None


def _fetch(entry: Path, sha256: str, read: Read) -> None:
    manifest = b"".join(_chunks(read, MANIFEST, 0))
    if hashlib.sha256(manifest).hexdigest() != sha256:
        raise DatasetError(str(entry), "the trainer's arrays are other ones than the job's")
    files = {Path(name).name: about for name, about in json.loads(manifest)["files"].items()}
    partial = entry.with_name(f".{sha256}")
    _make_room(partial, sum(size for size, _ in files.values()))
    partial.mkdir(exist_ok=True)
    for name, (_, wanted) in files.items():
        _fetch_file(partial / name, wanted, read)
    with (partial / MANIFEST).open("wb") as file:
        file.write(manifest)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(partial)
    os.rename(partial, entry)
    sync_folder(entry.parent)


def _fetch_file(path: Path, sha256: str, read: Read) -> None:
    """What is missing of it; once more all of it, where that does not make it whole."""
    for _ in range(2):
        with path.open("ab") as file:
            for chunk in _chunks(read, path.name, file.tell()):
                file.write(chunk)
                file.flush()
            os.fsync(file.fileno())
        if file_sha256(path) == sha256:
            return
        path.unlink()
    raise DatasetError(str(path), "what arrives is not what its hash says, twice")


def _chunks(read: Read, name: str, offset: int) -> Iterator[bytes]:
    while chunk := read(name, offset):
        offset += len(chunk)
        yield chunk


def _make_room(partial: Path, size: int) -> None:
    """Take entries away until the one that is to have `size` bytes, some of them in `partial`, is within the bound, or
    only such are left as are in use. DatasetError where it is beyond the bound by itself, or beyond what the disk has.
    """
    cache, bound = partial.parent, int(os.environ.get("FALLLINE_NODE_CACHE_BYTES") or CACHE_BYTES)
    if size > bound:
        raise DatasetError(str(cache), f"the dataset has {size:,} bytes; FALLLINE_NODE_CACHE_BYTES here is {bound:,}")
    sizes, used = dict[Path, int](), dict[Path, float]()
    for entry in cache.iterdir():
        with suppress(FileNotFoundError):  # somebody else has just made room of it
            if entry.is_dir():
                used[entry], sizes[entry] = entry.stat().st_mtime, sum(path.stat().st_size for path in entry.iterdir())
    missing, free = size - sizes.pop(partial, 0), shutil.disk_usage(cache).free
    if missing > free + sum(sizes.values()):
        raise DatasetError(str(cache), f"{missing:,} bytes of the dataset are still to come; its disk has {free:,}")
    for entry in sorted(sizes, key=lambda entry: used[entry]):
        if sum(sizes.values()) + size <= bound and missing <= shutil.disk_usage(cache).free:
            return
        try:
            with _lock(cache, entry.name.removeprefix("."), fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(entry, ignore_errors=True)
                del sizes[entry]
        except BlockingIOError:
            continue
