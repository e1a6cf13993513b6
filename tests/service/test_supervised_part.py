"""A part of the service: started, seen to end, started again; its log kept small."""

import errno
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.child import Child, trim_log
from service.embedded import Command
from service.launcher import child_of
from service.supervised_part import LONGEST_PAUSE_SECONDS, SupervisedPart, ending, restart_pause


def command(script: str, folder: Path) -> Command:
    return Command([sys.executable, "-S", "-c", script], dict(os.environ), folder)


@pytest.fixture
def fails(tmp_path: Path) -> Iterator[SupervisedPart]:
    part = SupervisedPart("api", lambda: command("print('no'); raise SystemExit(3)", tmp_path), tmp_path, 1)
    yield part
    part.kill()


def waited(part: SupervisedPart) -> SupervisedPart:
    assert part.child is not None
    part.child.wait(10)
    return part


def test_pauses_grow_from_none_to_a_limit() -> None:
    pauses = [restart_pause(failures) for failures in range(1, 12)]
    assert pauses[:4] == [0.0, 0.5, 1.0, 2.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_SECONDS


def test_what_ends_is_started_again_later_each_time(fails: SupervisedPart, tmp_path: Path) -> None:
    assert fails.look() is None  # starts it
    said = waited(fails).look()
    assert said == f"api ended with exit code 3, started again (see {tmp_path / 'api.log'})"
    assert fails.ended_with == 3
    assert fails.gone()
    assert fails.look() is None  # at once, the first time
    assert "again in 0.5 s" in (waited(fails).look() or "")
    assert fails.look() is None
    assert fails.child is None  # not yet
    assert (tmp_path / "api.log").read_text() == "no\nno\n"


def test_exit_codes_in_words() -> None:
    assert ending(0) == "ended with exit code 0"
    assert ending(137) == "killed by signal 9"


def test_a_restart_is_an_end_that_is_noticed(tmp_path: Path) -> None:
    part = SupervisedPart("ray", lambda: command("import time; time.sleep(60)", tmp_path), tmp_path, 30)
    part.start()
    try:
        part.restart()
        assert waited(part).look() is not None
        assert part.look() is None
        assert part.child is not None
    finally:
        part.kill()
        waited(part)


def test_a_killed_launcher_is_noticed(tmp_path: Path) -> None:
    child = Child(command("import time; time.sleep(60)", tmp_path), tmp_path / "x.log", 1)
    while (pid := child_of(child.pid)) is None:
        os.sched_yield()
    os.kill(child.pid, 9)
    child.wait(5)
    assert child.poll() == 128 + 9
    with open(os.pidfd_open(pid), "rb", buffering=0) as ended:
        os.kill(pid, 9)  # an orphan now: the supervisor's affair, which it is none of here
        select.select([ended], [], [], 5)


def test_a_log_moves_aside_when_it_has_grown(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    trim_log(log)
    with log.open("ab", buffering=0) as writer:
        writer.write(b"a" * 100)
        trim_log(log, 100)
        assert log.stat().st_size == 100
        trim_log(log, 99)
        writer.write(b"b")
    assert log.read_bytes() == b"b"
    assert (tmp_path / "api.log.1").read_bytes() == b"a" * 100


def test_a_log_that_a_full_disk_has_no_room_to_copy_is_cut_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "api.log"
    log.write_bytes(b"a" * 100)

    def half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:50])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", half)
    trim_log(log, 99)
    assert (log.read_bytes(), os.listdir(tmp_path)) == (b"", ["api.log"])
