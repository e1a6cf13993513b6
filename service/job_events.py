"""What happens to a job, and what is to be done then: the words that `service.job_state` puts together.

Events come from users (Cancel, Pause, Resume) and from controllers, which look at their jobs again and again. Each
brings the time, `at`, in Unix seconds; those that need the job's lease bring its `epoch`; a look at the job brings the
`shortage` of room on the disks, in words, where there is one.
"""

from dataclasses import dataclass
from enum import Enum

from service.records import Json, NewEvent


@dataclass(frozen=True)
class Cancel:
    """Its user wants it to end."""

    at: float


@dataclass(frozen=True)
class Pause:
    """Its user wants it to wait."""

    at: float


@dataclass(frozen=True)
class Resume:
    """Its user wants it to go on."""

    at: float


@dataclass(frozen=True)
class Scale:
    """Its user wants it to go on with so many workers."""

    at: float
    workers: int


@dataclass(frozen=True)
class Claim:
    """A controller takes it, for `seconds`."""

    at: float
    owner: str
    seconds: float


@dataclass(frozen=True)
class Renew:
    """Its controller is still there."""

    at: float
    owner: str
    seconds: float


@dataclass(frozen=True)
class TakeOver:
    """Its controller is gone: another one leads."""

    at: float


@dataclass(frozen=True)
class RoomAgain:
    """The disks have room again: no shortage is left to wait for."""

    at: float


@dataclass(frozen=True)
class TrainerMissing:
    """Its controller looked, and no trainer works for it."""

    at: float
    epoch: int
    shortage: str | None = None


@dataclass(frozen=True)
class TrainerRuns:
    """Its controller looked, and its trainer is at work."""

    at: float
    epoch: int
    shortage: str | None = None


@dataclass(frozen=True)
class TrainerEnded:
    """Its trainer has come to an `outcome`: succeeded, failed (with `error`), cancelled or paused."""

    at: float
    epoch: int
    outcome: str
    error: Json | None = None


@dataclass(frozen=True)
class TrainerLost:
    """Its trainer is gone without an outcome. `error`: it has happened too often to try again."""

    at: float
    epoch: int
    reason: str
    error: Json | None = None


@dataclass(frozen=True)
class RegistrationBegins:
    """The registrar is about to tell MLflow of its model."""

    at: float
    epoch: int


@dataclass(frozen=True)
class End:
    """It has ended: succeeded, once all is stored and told; or failed, with `error`."""

    at: float
    epoch: int
    status: str
    error: Json | None = None


UserEvent = Cancel | Pause | Resume | Scale
Event = (
    UserEvent
    | Claim
    | Renew
    | TakeOver
    | RoomAgain
    | TrainerMissing
    | TrainerRuns
    | TrainerEnded
    | TrainerLost
    | RegistrationBegins
    | End
)


class Do(Enum):
    """By the controller, about the job's trainer. Each may be done twice."""

    START = "start"
    CANCEL = "cancel"
    PAUSE = "pause"
    SCALE = "scale"  # to the workers that were asked for
    RELEASE = "release"  # it has ended in order: its actors go back into the pool
    KILL = "kill"


@dataclass(frozen=True)
class Tell:
    """By the store: an event for the job's readers, in the transaction of the change itself."""

    event: NewEvent


Effect = Do | Tell
