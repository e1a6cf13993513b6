"""What goes wrong in the data plane, as one tree. Raw arguments go to `Exception`: all of it survives pickling.

WorkerError
 ├─ Diverged         loss, gradient or weights stopped being numbers
 ├─ StepRefused      a step that does not follow the committed one
 ├─ ShardMissing     a shard that nobody has computed when its step is to be reduced: a defect of the exchange
 ├─ SeatStopped      the trainer said stop, or is gone: not an error of the job
 ├─ RemoteLost       a process of the exchange died
 ├─ LinkBroken       a connection between two of them broke, could not be made, or brought what nobody expected
 ├─ TooManyFailures  workers die faster than a job may go on with
 ├─ Cancelled        the job was asked to stop
 ├─ Paused           the job was asked to stop, and to go on later
 ├─ Orphaned         nobody has asked about the job for a while
 ├─ TrainerLost      the trainer's process is gone
 ├─ ClusterLost      Ray itself is gone
 ├─ WarmStartDamaged  the weights that a job is to start from are not what was kept
 └─ CheckpointError
     ├─ CheckpointStorageError  the disk does not take or give a checkpoint
     ├─ CheckpointDamaged       a checkpoint that is not what was written
     └─ CheckpointRefused       a whole one that does not belong here
"""

import errno
import os


class WorkerError(Exception):
    """Base of all errors of the data plane."""


class Diverged(WorkerError):
    """In `step` the `what` of `shard` was infinite or not a number; None: not that of a single shard."""

    def __init__(self, step: int, shard: int | None, what: str) -> None:
        super().__init__(step, shard, what)
        self.step, self.shard, self.what = step, shard, what

    def __str__(self) -> str:
        place = "" if self.shard is None else f" of shard {self.shard}"
        return f"step {self.step}: the {self.what}{place} is not finite"


class StepRefused(WorkerError):
    """`step` was offered, but the committed one is `committed`."""

    def __init__(self, step: int, committed: int) -> None:
        super().__init__(step, committed)
        self.step, self.committed = step, committed

    def __str__(self) -> str:
        return f"step {self.step} does not follow step {self.committed}, the committed one"


class ShardMissing(WorkerError):
    """`step` is to be reduced, or evaluated, and nobody has computed `shard`: a defect of the exchange."""

    def __init__(self, step: int, shard: int) -> None:
        super().__init__(step, shard)
        self.step, self.shard = step, shard

    def __str__(self) -> str:
        return f"step {self.step}: nobody has computed shard {self.shard}"


class SeatStopped(WorkerError):
    """A seat of the shared-memory exchange was left because the trainer said so, or is gone."""


class RemoteLost(WorkerError):
    """A process that was called, or whose result was needed, has died."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"a process of the exchange died: {self.reason}"


class LinkBroken(WorkerError):
    """The connection to `peer` is of no more use, for `reason`."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(peer, reason)
        self.peer, self.reason = peer, reason

    def __str__(self) -> str:
        return f"the link to {self.peer} broke: {self.reason}"


class TooManyFailures(WorkerError):
    """`failures` workers were lost within `seconds`."""

    def __init__(self, failures: int, seconds: float) -> None:
        super().__init__(failures, seconds)
        self.failures, self.seconds = failures, seconds

    def __str__(self) -> str:
        return f"{self.failures} workers were lost within {self.seconds:g} s"


class Cancelled(WorkerError):
    """The job was asked to stop."""


class Paused(WorkerError):
    """The job was asked to pause; its newest checkpoint is what it goes on from."""


class Orphaned(WorkerError):
    """Nobody has polled the trainer for `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"nobody has asked about the job for {self.seconds:g} s"


class TrainerLost(WorkerError):
    """The trainer of a job's attempt is gone."""

    def __init__(self, job_id: str, attempt: int) -> None:
        super().__init__(job_id, attempt)
        self.job_id, self.attempt = job_id, attempt

    def __str__(self) -> str:
        return f"the trainer of {self.job_id}, attempt {self.attempt}, is gone"


class ClusterLost(WorkerError):
    """Ray does not answer any more."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"Ray is lost: {self.reason}"


class WarmStartDamaged(WorkerError):
    """What a job is to start from, kept in `folder`, cannot be used, for `reason`."""

    def __init__(self, folder: str, reason: str) -> None:
        super().__init__(folder, reason)
        self.folder, self.reason = folder, reason

    def __str__(self) -> str:
        return f"the model to start from, kept in {self.folder}, is damaged: {self.reason}"


class CheckpointError(WorkerError):
    """Base of what goes wrong with checkpoints on disk."""


class CheckpointStorageError(CheckpointError):
    """The disk refused at `path`, with the system's error number `code`."""

    _ADVICE = (
        ((errno.ENOSPC, errno.EDQUOT), "free space there, or move FALLLINE_HOME to a larger disk"),
        ((errno.EACCES, errno.EPERM, errno.EROFS), "let the service's user write there"),
        ((errno.EFBIG,), "raise the limit of a file's size (ulimit -f)"),
        ((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
    )

    def __init__(self, path: str, code: int) -> None:
        super().__init__(path, code)
        self.path, self.code = path, code

    def __str__(self) -> str:
        advice = next((text for codes, text in self._ADVICE if self.code in codes), "check the disk")
        return f"checkpoints: {self.path}: {os.strerror(self.code)}; {advice}"


class CheckpointDamaged(CheckpointError):
    """The checkpoint at `path` is not what was written, for `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"the checkpoint {self.path} is damaged: {self.reason}"


class CheckpointRefused(CheckpointError):
    """The checkpoint at `path` is whole, and not to be used here, for `reason`; `advice` says what to do."""

    def __init__(self, path: str, reason: str, advice: str) -> None:
        super().__init__(path, reason, advice)
        self.path, self.reason, self.advice = path, reason, advice

    def __str__(self) -> str:
        return f"the checkpoint {self.path} is refused: {self.reason}; {self.advice}"
