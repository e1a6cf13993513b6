"""HTTP as the client sees it: the one place where an answer becomes data or an error, and where outages are sat out.

FallLineError
 ├─ ServiceError  the service answered, and refused: `status`, `code`, `message`, `param`, `details`
 ├─ Unreachable   nothing answered, or the connection broke off
 └─ JobTimeout    a job was waited for, and is not at its end yet
"""

import ipaddress
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

Json = dict[str, Any]
PASSING_STATUSES = frozenset({429, 502, 503, 504})
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


class FallLineError(Exception):
    """Base of what the client raises. `code` is for programs, `message` for people, `param` the field at fault."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(code, message, param)
        self.code, self.message, self.param = code, message, param

    def __str__(self) -> str:
        return self.message if self.param is None else f"{self.message} (param: {self.param})"

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed a little later."""
        return False


class ServiceError(FallLineError):
    """The service's own refusal. `details` holds the error's further fields, `status` the HTTP status."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None, details: Json | None = None):
        super().__init__(code, message, param)
        self.args = (status, code, message, param, details)
        self.status, self.details = status, details or {}

    @property
    def passing(self) -> bool:
        return self.status in PASSING_STATUSES


class Unreachable(FallLineError):
    """Nothing answers at `url`, or the connection broke off, for `reason`."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__("unreachable", f"no answer from {url}: {reason}")
        self.args = (url, reason)
        self.url, self.reason = url, reason

    @property
    def passing(self) -> bool:
        return True


class JobTimeout(FallLineError):
    """Job `job_id` was not at its end after `seconds`; it goes on."""

    def __init__(self, job_id: str, seconds: float) -> None:
        super().__init__("timeout", f"{job_id} has not ended within {seconds:g} s; it goes on")
        self.args = (job_id, seconds)
        self.job_id, self.seconds = job_id, seconds


class Patience:
    """Sits out an outage: pauses that double up to 5 s, and the error itself once it has lasted `seconds`."""

    def __init__(
        self,
        seconds: float,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds, self._pause, self._clock = seconds, pause, clock
        self._since: float | None = None
        self._next = FIRST_PAUSE_S

    @property
    def tried(self) -> bool:
        """Whether an outage goes on."""
        return self._since is not None

    def reset(self) -> None:
        """An answer came: the outage, if there was one, is over."""
        self._since, self._next = None, FIRST_PAUSE_S

    def wait(self, error: FallLineError) -> None:
        """Pause before the next try; raises `error` when it will not pass, or has lasted too long."""
        now = self._clock()
        if self._since is None:
            self._since = now
        if not error.passing or now - self._since >= self.seconds:
            raise error
        self.pause()

    def pause(self) -> None:
        """Pause, each time twice as long as before."""
        self._pause(self._next)
        self._next = min(2 * self._next, LONGEST_PAUSE_S)


class Transport:
    """One connection pool to one service. Answers are parsed JSON; everything else is a `FallLineError`."""

    def __init__(self, url: str, timeout_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the service's address must look like http://127.0.0.1:8000, not {url!r}")
        # A proxy from the environment must never stand between a program and a service on its own machine.
        self._http = httpx.Client(
            base_url=self.url,
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            trust_env=not _is_loopback(parts.hostname),
        )

    def close(self) -> None:
        self._http.close()

    def request(
        self, method: str, path: str, *, accept_statuses: Iterable[int] = (), repeats: int = 0, **arguments: Any
    ) -> Any:
        """Send one request; the parsed body of a 2xx answer, or of one of `accept_statuses`.

        `repeats`: how often a request whose connection broke off is sent again; only for what is idempotent.
        """
        while True:
            try:
                response = self._http.request(method, path, **arguments)
                break
            except httpx.TransportError as error:
                if repeats == 0 or isinstance(error, httpx.ConnectError):
                    raise self._unreachable(error) from error
                repeats -= 1
        if response.is_success or response.status_code in accept_statuses:
            return _body(response) if response.content else None
        raise _refusal(response)

    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[Json]:
        """The events of one server-sent stream, until it ends; `Unreachable` when it breaks off."""
        try:
            with self._http.stream("GET", path, headers={"Accept": "text/event-stream", **headers}) as response:
                if not response.is_success:
                    response.read()
                    raise _refusal(response)
                yield from parse_events(response.iter_lines())
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        return Unreachable(self.url, str(error) or type(error).__name__)


def parse_events(lines: Iterable[str]) -> Iterator[Json]:
    """Server-sent events (WHATWG HTML, section 9.2) whose data are JSON objects. Comments and empty events are skipped,
    and so is a last event that was cut off before its empty line."""
    data: list[str] = []
    for line in lines:
        if line == "":
            if data:
                yield json.loads("\n".join(data))
            data = []
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _body(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise ServiceError(
            response.status_code, "not_json", f"{response.url} did not answer in JSON: is it the service?"
        ) from error


def _refusal(response: httpx.Response) -> ServiceError:
    """The error that an answer carries; an answer of somebody else's (a proxy's page) gets a code of ours."""
    status = response.status_code
    try:
        error = response.json()["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return ServiceError(status, f"http_{status}", f"{response.url} answered {status} {response.reason_phrase}")
    details = {key: value for key, value in error.items() if key not in ("code", "message", "param")}
    return ServiceError(status, code, message, error.get("param"), details)
