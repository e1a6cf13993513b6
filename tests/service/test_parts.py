"""What tells which parts are up."""

import errno
import os
from pathlib import Path

import pytest

from service.parts import PARTS, STALE_SECONDS, Part, read_parts, run_folder, write_parts


def test_what_is_written_is_read_while_it_is_fresh(tmp_path: Path) -> None:
    run_folder(tmp_path).mkdir()
    parts = {"controller": Part("up", 1.0), "ray": Part("up", 2.0), "mlflow": Part("down", 3.0, "no answer")}
    write_parts(tmp_path, parts, 100.0)
    assert read_parts(tmp_path, 100.0 + STALE_SECONDS) == parts
    assert os.listdir(run_folder(tmp_path)) == ["status.json"]


def test_a_full_disk_takes_the_sign_of_life_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder(tmp_path).mkdir()
    parts = dict.fromkeys(PARTS, Part("up", 1.0))
    write_parts(tmp_path, parts, 100.0)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("service.parts.write_atomically", full)
    write_parts(tmp_path, dict.fromkeys(PARTS, Part("down", 2.0)), 200.0)
    assert read_parts(tmp_path, 200.0) == parts


def test_a_silent_controller_makes_every_part_down(tmp_path: Path) -> None:
    run_folder(tmp_path).mkdir()
    write_parts(tmp_path, dict.fromkeys(PARTS, Part("up", 1.0)), 100.0)
    seen = read_parts(tmp_path, 100.1 + STALE_SECONDS)
    assert {part.state for part in seen.values()} == {"down"}
    assert seen["ray"].since == 100.0


def test_before_the_first_sign_of_life_and_for_unreported_parts(tmp_path: Path) -> None:
    assert {part.state for part in read_parts(tmp_path, 5.0).values()} == {"starting"}
    run_folder(tmp_path).mkdir()
    write_parts(tmp_path, {"controller": Part("up", 1.0)}, 5.0)
    assert {name: part.state for name, part in read_parts(tmp_path, 6.0).items()} == {
        "controller": "up",
        "ray": "starting",
        "mlflow": "starting",
    }
