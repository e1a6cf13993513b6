"""A job's checkpoints on disk: saved whole or not at all, read newest first, the broken ones set aside.

step-<number>               a checkpoint (worker.checkpoint); it has this name once all of it is on the disk
broken-step-<number>-<ns>   one that turned out to be damaged, kept for who wants to look
.partial-<random>           being written or being removed: what a crash leaves is swept by the next attempt
.replaced-<number>          the former checkpoint of a step that is saved again
warm-start                  what the job has started from, if from another one (worker.warm_start): not looked at here
"""

import contextlib
import errno
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.checkpoint import (
    Array,
    Checkpoint,
    CheckpointDescription,
    read_checkpoint,
    read_description,
    read_parameters,
    write_checkpoint,
)
from worker.durable import make_durably, sync_folder
from worker.errors import CheckpointDamaged, CheckpointRefused, CheckpointStorageError

NEWEST_KEPT = 3
BROKEN_KEPT = 3
_STEP = re.compile(r"step-([1-9][0-9]{0,18})")
_BROKEN = re.compile(r"broken-step-[0-9]+-([0-9]+)")
_REPLACED = re.compile(r"\.replaced-([0-9]+)")
_PARTIAL = ".partial-"


@dataclass(frozen=True)
class BrokenCheckpoint:
    """A checkpoint that was set aside: of `step`, damaged for `reason`, kept in the folder `path`."""

    step: int
    reason: str
    path: str


def retained(steps: Collection[int]) -> set[int]:
    """Which of the checkpoints of `steps` (all at least 1) are kept: the newest three, and for each power of two the
    first that is not before it. So at most 4 + log2(max(steps)), and what was let go is never missed later."""
    ordered = sorted(set(steps))
    kept = set(ordered[-NEWEST_KEPT:])
    power = 1
    for step in ordered:
        if step >= power:
            kept.add(step)
            power = 1 << step.bit_length()  # the first power of two after step
    return kept


class CheckpointStore:
    """The checkpoints of one job in `folder`, which the first save makes. Every method may raise
    CheckpointStorageError, which names the path and what to do; the checkpoints that were there stay usable.

    One process writes: that of the job's attempt, and it begins with `newest_valid`. Any process may `list`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(self, checkpoint: Checkpoint) -> CheckpointDescription:
        """Durable when it returns, in the place of an earlier one of the same step. Lets go what is not retained."""
        partial = self.folder / f"{_PARTIAL}{secrets.token_hex(8)}"
        with self._disk():
            make_durably(self.folder)
            try:
                partial.mkdir()
                description = write_checkpoint(partial, checkpoint)
                self._publish(partial, checkpoint.step)
            finally:
                shutil.rmtree(partial, ignore_errors=True)  # the next sweep tries again, and says so if it cannot
            steps = self._steps()
            for step in set(steps) - retained(steps):
                self._remove(self._path(step))
        return description

    def newest_valid(
        self, plan_sha256: str, on_broken: Callable[[BrokenCheckpoint], None] = lambda broken: None
    ) -> Checkpoint | None:
        """The newest checkpoint that is whole. Those found broken before it are set aside, each told to `on_broken`.

        Raises CheckpointRefused where a whole one is of another plan (`plan_digest`) or format.
        """
        with self._disk():
            self.sweep()
            for step in sorted(self._steps(), reverse=True):
                try:
                    return self._read(step, plan_sha256)
                except CheckpointDamaged as damage:
                    on_broken(self._set_aside(step, damage))
        return None

    def set_all_aside(self, reason: str) -> None:
        """None here is to be used any more, for `reason`: a training begins anew that none of them belongs to."""
        with self._disk():
            for step in sorted(self._steps()):
                self._set_aside(step, CheckpointDamaged(str(self._path(step)), reason))

    def list(self) -> tuple[CheckpointDescription, ...]:
        """What can be told of them, newest first, by their manifests; broken ones are left to `newest_valid`."""
        found = []
        with self._disk():
            for step in sorted(self._steps(), reverse=True):
                # Damaged, of another version, or let go by its owner meanwhile.
                with contextlib.suppress(CheckpointDamaged, CheckpointRefused):
                    found.append(read_description(self._path(step)))
        return tuple(found)

    def parameters(self, step: int) -> Array:
        """The parameters (P,) of the checkpoint of `step`, for any process; every byte of it is checked.

        Raises CheckpointDamaged, also where there is none, and CheckpointRefused; nothing is set aside.
        """
        return read_parameters(self._path(step))

    def sweep(self) -> None:
        """Remove what a crash left. Only for the process that writes: it would take its own work from another."""
        with self._disk():
            for step, path in self._numbered(_REPLACED).items():
                if self._path(step).exists():
                    self._remove(path)
                else:
                    path.rename(self._path(step))
                    sync_folder(self.folder)
            for path in self._paths():
                if path.name.startswith(_PARTIAL):
                    _delete(path)

    def delete_all(self) -> None:
        """Remove the folder and all that is in it: of a job that has ended."""
        with self._disk(), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)

    def _read(self, step: int, plan_sha256: str) -> Checkpoint:
        path = self._path(step)
        checkpoint = read_checkpoint(path, plan_sha256)
        if checkpoint.step != step:
            raise CheckpointDamaged(str(path), f"it holds step {checkpoint.step}")
        return checkpoint

    def _publish(self, partial: Path, step: int) -> None:
        """Give the finished `partial` its name."""
        target, replaced = self._path(step), self.folder / f".replaced-{step}"
        if target.exists():
            _delete(replaced)  # of a crash that nobody has swept
            target.rename(replaced)
        try:
            partial.rename(target)
        except OSError:
            if replaced.exists():
                replaced.rename(target)
            raise
        sync_folder(self.folder)
        self._remove(replaced)

    def _set_aside(self, step: int, damage: CheckpointDamaged) -> BrokenCheckpoint:
        path = self.folder / f"broken-step-{step}-{time.time_ns()}"
        self._path(step).rename(path)
        sync_folder(self.folder)
        broken = self._numbered(_BROKEN)
        for when in sorted(broken)[:-BROKEN_KEPT]:
            self._remove(broken[when])
        return BrokenCheckpoint(step, damage.reason, str(path))

    def _remove(self, path: Path) -> None:
        """Away at once under its name: a removal that is cut off leaves nothing that looks like a checkpoint."""
        if path.exists():
            gone = self.folder / f"{_PARTIAL}{secrets.token_hex(8)}"
            path.rename(gone)
            _delete(gone)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def _steps(self) -> tuple[int, ...]:
        return tuple(self._numbered(_STEP))

    def _numbered(self, name: re.Pattern[str]) -> dict[int, Path]:
        """What is in the folder under such a name, by the number in it."""
        return {int(match[1]): path for path in self._paths() if (match := name.fullmatch(path.name))}

    def _paths(self) -> tuple[Path, ...]:
        try:
            return tuple(self.folder.iterdir())
        except FileNotFoundError:
            return ()  # nothing was saved yet

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointStorageError(str(self.folder), error.errno or errno.EIO) from error


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
