"""Artifacts by hash: atomic, checked, never changed."""

import os
import threading
from pathlib import Path

import pytest

from service.artifacts import ABANDONED_SECONDS, TEMPORARY, ArtifactError, ArtifactStore, artifact_sha256

FILES = {"model.json": b"{}", "weights.safetensors": bytes(range(256)) * 100}


def test_what_is_put_is_found_by_its_hash(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    sha256 = store.put(FILES)
    assert {path.name: path.read_bytes() for path in store.check(sha256).iterdir()} == FILES
    assert sha256 == artifact_sha256(dict(reversed(FILES.items()))) == store.put(FILES)
    assert os.listdir(store.root) == [sha256]


def test_another_content_or_name_is_another_artifact() -> None:
    swapped = {"model.json": FILES["weights.safetensors"], "weights.safetensors": FILES["model.json"]}
    hashes = {artifact_sha256(files) for files in (FILES, swapped, FILES | {"extra": b""}, {})}
    assert len(hashes) == 4


def test_damage_is_seen_and_mended_by_the_next_put(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    sha256 = store.put(FILES)
    for damage in (
        lambda: (tmp_path / sha256 / "model.json").write_bytes(b"[]"),
        lambda: (tmp_path / sha256 / "model.json").unlink(),
        lambda: (tmp_path / sha256 / "more").write_bytes(b""),
    ):
        damage()
        with pytest.raises(ArtifactError, match="damaged"):
            store.check(sha256)
        assert store.put(FILES) == sha256
        store.check(sha256)


@pytest.mark.parametrize("sha256", ["0" * 64, "..", "", "../artifacts"])
def test_what_is_not_stored_is_refused(tmp_path: Path, sha256: str) -> None:
    with pytest.raises(ArtifactError, match="not stored"):
        ArtifactStore(tmp_path).folder(sha256)


@pytest.mark.parametrize("name", ["../model.json", "/etc/passwd", "a/b", ".hidden", ""])
def test_only_plain_names_are_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain file name"):
        ArtifactStore(tmp_path).put({name: b""})
    assert os.listdir(tmp_path) == []


def test_a_failed_put_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        ArtifactStore(tmp_path).put(FILES)
    assert os.listdir(tmp_path) == []


def test_several_writers_of_one_artifact(tmp_path: Path) -> None:
    store, start = ArtifactStore(tmp_path), threading.Barrier(8)
    hashes: list[str] = []

    def write() -> None:
        start.wait(10)
        hashes.append(store.put(FILES))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert hashes == [artifact_sha256(FILES)] * 8
    assert os.listdir(tmp_path) == hashes[:1]
    store.check(hashes[0])


def test_the_sweep_takes_old_leftovers_alone(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    sha256 = store.put(FILES)
    for name in ("old", "new"):
        (tmp_path / f"{TEMPORARY}{name}").mkdir()
    before = (tmp_path / sha256).stat().st_mtime - ABANDONED_SECONDS - 1
    os.utime(tmp_path / f"{TEMPORARY}old", (before, before))
    store.sweep()
    assert sorted(os.listdir(tmp_path)) == sorted([sha256, f"{TEMPORARY}new"])


def test_the_error_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ArtifactError("ab", "damaged")))
    assert str(error) == "artifact ab: damaged"
