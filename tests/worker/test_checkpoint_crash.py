"""Checkpoints of processes that are killed, and on disks that are full: real ones. This file is the child as well."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worker.checkpoint import Checkpoint
from worker.checkpoint_store import BrokenCheckpoint, CheckpointStore
from worker.errors import CheckpointStorageError

PLAN, SIZE = "5" * 64, 20_000
NOT_PERMITTED = 77  # the child's exit code where it may not mount
KILLS = 12


def sample(step: int) -> Checkpoint:
    """What step must hold: a function of its number."""
    values = np.random.default_rng(step).normal(size=(4, SIZE)).astype(np.float32)
    return Checkpoint("job_1", 1, PLAN, "numerics", step, 0, values[0], values[1:3], loss_sum=step / 3)


def newest(folder: Path) -> int:
    """The step of the newest checkpoint, 0 without; what it holds is checked, and that none was found broken."""
    broken: list[BrokenCheckpoint] = []
    found = CheckpointStore(folder).newest_valid(PLAN, broken.append)
    assert broken == []
    if found is None:
        return 0
    assert all(path.name.startswith("step-") or path.name == "filler" for path in folder.iterdir())
    wanted = sample(found.step)
    assert found.parameters.tobytes() == wanted.parameters.tobytes()
    assert found.optimizer_state.tobytes() == wanted.optimizer_state.tobytes()
    assert found.loss_sum == wanted.loss_sum
    return found.step


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, __file__, *map(str, arguments)]


ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def test_whenever_it_is_killed_the_newest_checkpoint_is_whole_and_none_that_was_acknowledged_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    with capsys.disabled():
        sys.stdout.write(f" seed {seed} ")
    moments, folder, at = random.Random(seed), tmp_path / "job_1", 0
    for _ in range(KILLS):
        with subprocess.Popen(command("save", folder), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as child:
            assert child.stdout is not None
            began = time.monotonic()
            for _ in range(moments.randint(1, 3)):
                assert child.stdout.readline()
            time.sleep(moments.uniform(0, (time.monotonic() - began) / 4))  # the moment of the fault: any will do
            child.kill()
            acknowledged = [int(line) for line in child.stdout]
        found = newest(folder)
        assert found >= max([at, *acknowledged]), f"seed {seed}"
        at = found
    assert at > KILLS


@pytest.mark.parametrize("call", ["mkdir", "fsync", "rename"])
def test_killed_before_and_after_each_call_that_a_save_makes(tmp_path: Path, call: str) -> None:
    run = subprocess.run(command("die", tmp_path, call), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, check=True)
    found = [json.loads(line) for line in run.stdout.splitlines()]
    turns = {"mkdir": 1, "fsync": 4, "rename": 3}[call]
    assert [case["killed"] for case in found] == [True] * (2 * turns) + [False] * 2  # the last two: no such turn
    assert {case["newest"] for case in found} == {8}


def test_a_full_disk_and_one_that_became_read_only(tmp_path: Path) -> None:
    """A real tmpfs of 2 MiB, mounted for the child alone."""
    script = f'mount -t tmpfs -o size=2m tmpfs "$0" || exit {NOT_PERMITTED}; exec "$@"'
    mounted = ["unshare", "-m", "sh", "-c", script, str(tmp_path), *command("full", tmp_path)]
    run = subprocess.run(mounted, capture_output=True, text=True, env=ENVIRONMENT)
    if run.returncode == NOT_PERMITTED or "unshare" in run.stderr:
        pytest.skip(f"this process may not mount: {run.stderr.strip()}")
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["full"]["code"] == errno.ENOSPC
    assert "No space left on device; free space there" in told["full"]["message"]
    assert str(tmp_path) in told["full"]["message"]
    assert (told["full"]["newest"], told["full"]["names"]) == (2, ["step-1", "step-2"])
    assert told["after"] == 3
    assert told["read_only"]["code"] == errno.EROFS
    assert "let the service's user write there" in told["read_only"]["message"]
    assert told["read_only"]["newest"] == 3


def test_a_limit_of_a_files_size(tmp_path: Path) -> None:
    run = subprocess.run(command("limit", tmp_path), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, check=True)
    told = json.loads(run.stdout)
    assert told["limited"]["code"] == errno.EFBIG
    assert "ulimit -f" in told["limited"]["message"]
    assert (told["limited"]["newest"], told["limited"]["names"]) == (1, ["step-1"])
    assert told["after"] == 2


# What follows runs in the child.


def say(value: Any) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


def refused(folder: Path, step: int) -> dict[str, Any]:
    """What a save says that must fail, and how the store is afterwards."""
    try:
        CheckpointStore(folder).save(sample(step))
    except CheckpointStorageError as error:
        names = sorted(path.name for path in folder.iterdir() if path.name != "filler")
        return {"code": error.code, "message": str(error), "names": names, "newest": newest(folder)}
    raise AssertionError("it was saved")


def child_save(folder: Path) -> None:
    """Saves step after step, every one twice, from the newest on, until it is killed."""
    store, step = CheckpointStore(folder), newest(folder)
    while True:
        step += 1
        for _ in range(2):
            store.save(sample(step))
            say(step)


def child_die(folder: Path, call: str) -> None:
    """A process for each call of the system's in the replacement of a checkpoint, killed before it or after it."""
    real = getattr(os, call)
    for turn in range({"mkdir": 1, "fsync": 4, "rename": 3}[call] + 1):
        for when in ("before", "after"):
            case = folder / f"{call}-{turn}-{when}"
            CheckpointStore(case).save(sample(7))
            CheckpointStore(case).save(sample(8))
            pid = os.fork()
            if pid == 0:
                left = [turn]

                def killed(*arguments: Any, left: list[int] = left, when: str = when, **named: Any) -> Any:
                    left[0] -= 1
                    if left[0] == -1 and when == "before":
                        os.kill(os.getpid(), signal.SIGKILL)
                    result = real(*arguments, **named)
                    if left[0] == -1:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return result

                setattr(os, call, killed)
                CheckpointStore(case).save(sample(8))
                os._exit(0)
            status = os.waitpid(pid, 0)[1]
            say({"killed": os.WIFSIGNALED(status), "newest": newest(case)})


def child_full(folder: Path) -> None:
    """Fills the disk but for half a checkpoint."""
    store = CheckpointStore(folder)
    store.save(sample(1))
    store.save(sample(2))
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(file.tell() - 120_000)
    full = refused(folder, 3)
    (folder / "filler").unlink()
    store.save(sample(3))
    after = newest(folder)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    say({"full": full, "after": after, "read_only": refused(folder, 4)})


def child_limit(folder: Path) -> None:
    store = CheckpointStore(folder)
    store.save(sample(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    limited = refused(folder, 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.save(sample(2))
    say({"limited": limited, "after": newest(folder)})


if __name__ == "__main__":
    children = {"save": child_save, "die": child_die, "full": child_full, "limit": child_limit}
    children[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
