"""Processes are watched by what cannot be mistaken for another one."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from worker.pidfds import Pidfds


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two that run until they are ended."""
    started = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_it_tells_who_has_ended_and_watches_whom_it_is_told_to(processes: list[subprocess.Popen[bytes]]) -> None:
    before = set(os.listdir("/proc/self/fd"))
    pidfds = Pidfds()
    pids = {name: process.pid for name, process in zip("ab", processes, strict=True)}
    pidfds.watch(pids)
    assert pidfds.ended() == set()
    assert not pidfds.has_ended("a")
    processes[0].kill()
    assert pidfds.has_ended("a", wait_ms=None)
    assert pidfds.ended() == {"a"}
    pidfds.watch({"b": pids["b"]})
    assert pidfds.ended() == set()
    pidfds.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_stopped_process_is_ended_and_waited_for(processes: list[subprocess.Popen[bytes]]) -> None:
    pidfds = Pidfds()
    pidfds.watch({"a": processes[0].pid})
    processes[0].send_signal(signal.SIGSTOP)
    pidfds.kill("a")
    assert pidfds.has_ended("a")
    pidfds.kill("a")  # that it is gone already is no error
    assert processes[0].wait() == -signal.SIGKILL
    pidfds.kill("a")  # nor is that nobody knows it any more
    pidfds.close()


def test_who_is_gone_before_he_is_watched_is_told_of(processes: list[subprocess.Popen[bytes]]) -> None:
    processes[0].kill()
    processes[0].wait()
    pidfds = Pidfds()
    with pytest.raises(ProcessLookupError):
        pidfds.watch({"a": processes[0].pid})
    pidfds.close()
