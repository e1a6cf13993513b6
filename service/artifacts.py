"""Trained networks on disk, by the hash of their content: what is written once is never changed.

`root/<sha256>/` holds the files of one artifact (model.json, weights.safetensors). The name is the hash of the content,
so that a folder can be checked at any time, a second copy costs nothing, and whoever serves a model can tell that it
serves exactly what was registered.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from service import disk

TEMPORARY = ".partial-"
ABANDONED_SECONDS = 3600.0


class ArtifactError(Exception):
    """The artifact `sha256` cannot be used, for `reason`."""

    def __init__(self, sha256: str, reason: str) -> None:
        super().__init__(sha256, reason)
        self.sha256, self.reason = sha256, reason

    def __str__(self) -> str:
        return f"artifact {self.sha256}: {self.reason}"


def artifact_sha256(files: Mapping[str, bytes]) -> str:
    """The hash of an artifact: SHA-256 over the sorted names and the hashes of the files behind them."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable: a rename alone is not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file whose bytes are on disk when this returns; its name is durable once the folder is synced too."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class ArtifactStore:
    """A folder of artifacts. Safe for several writers at once; a crash leaves nothing but a hidden temporary folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, files: Mapping[str, bytes]) -> str:
        """Stores the files (plain names, no folders) and returns the artifact's hash. Durable when it returns.

        What is there already is kept when it is whole, replaced when it is damaged.
        """
        for name in files:
            if not name or name != os.path.basename(name) or name.startswith("."):
                raise ValueError(f"{name!r} is not a plain file name")
        sha256 = artifact_sha256(files)
        folder = self.root / sha256
        if self._is_whole(sha256):
            return sha256
        self.root.mkdir(parents=True, exist_ok=True)
        partial = self.root / f"{TEMPORARY}{secrets.token_hex(8)}"
        partial.mkdir()
        try:
            for name, content in files.items():
                write_durably(partial / name, content)
            sync_folder(partial)
            self._move(partial, folder)
            sync_folder(self.root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return sha256

    def put_if_room(self, files: Mapping[str, bytes]) -> str | None:
        """Like `put`; None, and nothing is kept, where the disk has no room for them."""
        if disk.look([self.root])[self.root].free < sum(map(len, files.values())):
            return None  # seen without writing it all: who waits for room asks often
        try:
            return self.put(files)
        except OSError as error:
            if disk.is_full(error):
                return None
            raise

    def folder(self, sha256: str) -> Path:
        """The artifact's folder, for reading. Raises `ArtifactError` when it is missing; its files are not checked."""
        folder = self.root / sha256
        if not re.fullmatch("[0-9a-f]{64}", sha256) or not folder.is_dir():
            raise ArtifactError(sha256, "not stored")
        return folder

    def check(self, sha256: str) -> Path:
        """Like `folder`, after reading every file. Raises `ArtifactError` when one was changed, added or lost."""
        folder = self.folder(sha256)
        if artifact_sha256({path.name: path.read_bytes() for path in folder.iterdir()}) != sha256:
            raise ArtifactError(sha256, "damaged: the files' hash is another")
        return folder

    def sweep(self) -> None:
        """Removes what a crash left half written, long enough ago that nobody is still writing it."""
        if not self.root.is_dir():
            return
        for path in self.root.glob(f"{TEMPORARY}*"):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)

    def _is_whole(self, sha256: str) -> bool:
        try:
            self.check(sha256)
        except (ArtifactError, FileNotFoundError):  # the latter: another writer moved a damaged one away meanwhile
            return False
        return True

    def _move(self, partial: Path, folder: Path) -> None:
        """Renames `partial` to `folder`, in the place of a damaged one. Another writer's whole one stays."""
        while True:
            try:
                partial.rename(folder)
                return
            except OSError:
                if not folder.is_dir():
                    raise
            if self._is_whole(folder.name):
                return
            folder.rename(self.root / f"{TEMPORARY}{secrets.token_hex(8)}")
