"""Everything the service refuses, as one tree; the API turns each into the contract's error shape.

ServiceError
 ├─ SettingsError        a `FALLLINE_*` variable that cannot be used
 ├─ ApiError             an answer with a status and a code: what routes raise
 │   └─ SpecError        a field of a job spec that cannot be used (422)
 └─ StoreError           the store says no
     ├─ StoreUnavailable it is locked, or does not answer, at the moment
     │   └─ StoreFull    its disk is full: nothing was written
     ├─ NotFound         no such dataset, job, model or version
     ├─ LeaseLost        the job belongs to another controller by now: stop working on it
     ├─ LeadLost         another controller works by now: end
     ├─ QueueFull        as many jobs wait as may wait
     ├─ InvalidTransition  the job's status does not allow this
     ├─ Conflict         the state of something else forbids it
     └─ KeyReused        an idempotency key that has been used with another body

Each passes its raw arguments on to `Exception`, so that it survives pickling between processes.
"""

from typing import Any


class ServiceError(Exception):
    """Base of all errors of the service."""


class SettingsError(ServiceError):
    """The variable `name` holds `value`; `expected` says what would be right."""

    def __init__(self, name: str, value: str, expected: str) -> None:
        super().__init__(name, value, expected)
        self.name, self.value, self.expected = name, value, expected

    def __str__(self) -> str:
        return f"{self.name}={self.value!r}: {self.expected}"


class ApiError(ServiceError):
    """An error answer: HTTP `status`, the contract's `code`, `message`, `param`, and `details` beside them."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        details: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, code, message, param, details, headers)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.details, self.headers = details or {}, headers or {}

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}" + (f" ({self.param})" if self.param else "")


class SpecError(ApiError):
    """The job spec's field `param` cannot be used. `code`: invalid_spec or not_supported_yet."""

    def __init__(
        self, param: str, message: str, code: str = "invalid_spec", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(422, code, message, param, details)
        self.args = (param, message, code, details)  # what unpickling calls this class with


class StoreError(ServiceError):
    """Base of what the store refuses."""


class StoreUnavailable(StoreError):
    """The store cannot be read or written now, for `reason`. It may pass."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the store cannot be used at the moment: {self.reason}"


class StoreFull(StoreUnavailable):
    """The disk of the store at `place` is full: nothing was written, and what is there can be read."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place

    def __str__(self) -> str:
        return f"the disk of the store is full, so nothing can be recorded: free some space at {self.place}"


class NotFound(StoreError):
    """There is no `noun` called `name`."""

    def __init__(self, noun: str, name: str) -> None:
        super().__init__(noun, name)
        self.noun, self.name = noun, name

    def __str__(self) -> str:
        return f"there is no {self.noun} {self.name!r}"


class LeaseLost(StoreError):
    """Job `job_id` is no longer held under lease `epoch`: it was claimed again, or it has ended."""

    def __init__(self, job_id: str, epoch: int) -> None:
        super().__init__(job_id, epoch)
        self.job_id, self.epoch = job_id, epoch

    def __str__(self) -> str:
        return f"lease {self.epoch} of {self.job_id} is lost"


class LeadLost(StoreError):
    """The controller `owner` does not lead any more: another one has taken over."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner

    def __str__(self) -> str:
        return f"{self.owner} does not lead any more"


class QueueFull(StoreError):
    """`queued` jobs wait, as many as may."""

    def __init__(self, queued: int) -> None:
        super().__init__(queued)
        self.queued = queued

    def __str__(self) -> str:
        return f"{self.queued} jobs are queued, which is the limit (FALLLINE_MAX_QUEUED_JOBS): try again later"


class InvalidTransition(StoreError):
    """Job `job_id` is `status`; `wanted` cannot be done with it."""

    def __init__(self, job_id: str, status: str, wanted: str) -> None:
        super().__init__(job_id, status, wanted)
        self.job_id, self.status, self.wanted = job_id, status, wanted

    def __str__(self) -> str:
        return f"{self.job_id} is {self.status}: it cannot be {self.wanted}"


class Conflict(StoreError):
    """`code` as the API reports it (dataset_in_use, dataset_not_ready, signature_changed, ...), `message` in words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message

    def __str__(self) -> str:
        return self.message


class KeyReused(StoreError):
    """The idempotency key has come with another body before."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"the idempotency key {self.key!r} was used with another body"
