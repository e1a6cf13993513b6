"""The launcher: nothing of a command outlives its owner."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service import launcher

LAUNCHER = [sys.executable, "-I", "-S", launcher.__file__]

# Starts a grandchild in a session of its own that ignores SIGTERM, and a daemon whose parent ends at once.
FAMILY = """
import os, signal, subprocess, sys, time
stubborn = "import signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); print('up', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-S", "-c", stubborn], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
middle = os.fork()
if middle == 0:
    os.setsid()
    daemon = os.fork()
    if daemon:
        print(daemon, flush=True)
        os._exit(0)
    time.sleep(600)
    os._exit(0)
os.waitpid(middle, 0)
print(child.pid, flush=True)
if sys.argv[1] == "stay":
    time.sleep(600)
sys.exit(7)
"""


@contextmanager
def launched(grace: float, *command: str, folder: str | Path = "-") -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*LAUNCHER, str(grace), str(folder), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,  # or `select` would not see a line that was read together with the one before
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout:
        try:
            yield process
        finally:
            process.stdin.close()
            process.terminate()
            process.wait(10)


def line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 10)
    assert ready, "the command said nothing within 10 s"
    return process.stdout.readline().decode().strip()


def alive(pid: int) -> bool:
    return launcher.parent_of(pid) is not None


def test_end_of_file_ends_sessions_and_daemons_too() -> None:
    with launched(4.0, sys.executable, "-S", "-c", FAMILY, "stay") as process:
        family = [int(line(process)), int(line(process))]
        assert all(map(alive, family))
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(5) == 128 + signal.SIGTERM
        assert not any(map(alive, family))


def test_what_a_command_leaves_behind_ends_with_it_and_its_exit_code_is_kept() -> None:
    with launched(5, sys.executable, "-S", "-c", FAMILY, "go") as process:
        family = [int(line(process)), int(line(process))]
        assert process.wait(5) == 7
        assert not any(map(alive, family))


def test_sigterm_ends_all_without_grace() -> None:
    with launched(60, sys.executable, "-S", "-c", FAMILY, "stay") as process:
        family = [int(line(process)), int(line(process))]
        process.terminate()
        assert process.wait(5) == 128 + signal.SIGKILL
        assert not any(map(alive, family))


def test_a_command_gets_its_grace_to_end_in_order() -> None:
    orderly = (
        "import signal, sys, time; signal.signal(15, lambda *a: sys.exit(5)); print('up', flush=True); time.sleep(60)"
    )
    with launched(30, sys.executable, "-S", "-c", orderly) as process:
        assert line(process) == "up"
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 5


def test_grace_ends() -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    with launched(0.3, sys.executable, "-S", "-c", stubborn) as process:
        assert line(process) == "up"
        assert process.stdin is not None
        begun = time.monotonic()
        process.stdin.close()
        assert process.wait(10) == 128 + signal.SIGKILL
        assert time.monotonic() - begun >= 0.3


def test_kill_of_the_owner_ends_the_command(tmp_path: Path) -> None:
    owner = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen({[*LAUNCHER, '0.2', '-']!r} + [sys.executable, '-S', '-c', sys.argv[1], 'stay'],"
        " stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-S", "-c", owner, FAMILY], stdout=subprocess.PIPE, bufsize=0) as process:
        pids = [int(line(process)) for _ in range(3)]
        assert all(map(alive, pids))
        process.kill()
        assert process.wait(5) == -signal.SIGKILL
        deadline = time.monotonic() + 5
        while any(map(alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.01)  # polls a condition: nothing tells an outsider of another process's end
        assert not any(map(alive, pids))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_terminals_signals_are_the_owners_affair(number: signal.Signals) -> None:
    talker = "import sys, time; print('up', flush=True); time.sleep(0.2); print('still up', flush=True); time.sleep(60)"
    with launched(5, sys.executable, "-S", "-c", talker) as process:
        assert line(process) == "up"
        os.kill(process.pid, number)
        assert line(process) == "still up"


def test_the_command_does_not_inherit_ignored_signals() -> None:
    shows = "import signal; print(signal.getsignal(signal.SIGINT), repr(signal.getsignal(signal.SIGHUP)), flush=True)"
    with launched(5, sys.executable, "-S", "-c", shows) as process:
        assert "default_int_handler" in (said := line(process))
        assert "SIG_DFL" in said


def test_its_folder_goes_when_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    (folder / "below").mkdir(parents=True)
    with launched(5, sys.executable, "-S", "-c", "print('up', flush=True); input()", folder=folder) as process:
        assert line(process) == "up"
        process.wait(5)
    assert not folder.exists()


def test_a_command_that_does_not_exist_is_told() -> None:
    with launched(5, "/no/such/command") as process:
        assert process.wait(5) == launcher.COMMAND_NOT_STARTED


def test_descendants_come_with_their_parents() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-S", "-c", script], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 10
        while len(family := launcher.descendants(process.pid)) < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(family.values()) == [process.pid]
        for pid, parent in family.items():
            launcher.kill(pid, parent + 1)  # another parent: another process by now
            assert alive(pid)
            launcher.kill(pid, parent)
