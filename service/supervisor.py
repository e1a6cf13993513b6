"""`fallline serve`: starts API, Ray head, MLflow and controller, starts again what dies, and ends all in order.

The API comes first and alone, so that jobs are accepted within seconds; the rest follows as soon as it listens. Every
part runs under a launcher (`service.launcher`) that ends it when this process is gone, even by `kill -9`. On SIGINT,
SIGTERM or SIGHUP the API and the controller are asked to end, then Ray and MLflow: END_SECONDS at most, in all; a
second signal kills without waiting.

Ray and its driver, the controller, go together: when the head ends, a new one gets a new port, and the controller is
started again for it. A controller that says that Ray is lost, or says nothing for a minute, is started again as well.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from select import select
from types import FrameType

from service import disk, launcher, parts
from service.embedded import (
    Command,
    mlflow_server,
    new_token,
    own_environment,
    python_module,
    ray_environment,
    ray_head,
    without_ray,
)
from service.errors import ServiceError
from service.home import ServeError, new_ray_folder, only_one
from service.one_part import check_ray_address
from service.ports import LOOPBACK, chosen_port, free_port, held, listens, reachable
from service.settings import Settings
from service.supervised_part import SupervisedPart

API_FIRST_SECONDS = 3.0
MLFLOW_DELAY_SECONDS = 2.5
API_GRACE, CONTROLLER_GRACE, RAY_GRACE, MLFLOW_GRACE = 4.0, 5.0, 0.0, 3.0
END_SECONDS = 10.0  # the longer of each pair, and what killing takes
SILENT_SECONDS = 60.0
API_ATTEMPTS = 3


def say(line: str) -> None:
    """A line on standard output, at once."""
    with contextlib.suppress(OSError):  # nobody reads any more, or the output's disk is full: no reason to end
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


class Supervisor:
    """The running service. `run` returns when it has ended; the lock on the home is the caller's affair."""

    def __init__(self, settings: Settings, tell: Callable[[str], None] = say) -> None:
        """Raises `ServeError` when a port is taken, or the address of Ray is not one."""
        self.settings, self.tell = settings, tell
        if settings.ray_address:
            check_ray_address(settings.ray_address)
        self.started_at = time.time()
        self.stops = 0
        self.accepts_jobs = self.everything_is_up = False
        self.port = chosen_port("FALLLINE_PORT", settings.host, settings.port)
        self.api_url = f"http://{reachable(settings.host)}:{self.port}"
        self.mlflow_port = 0
        self.mlflow_url = settings.mlflow_tracking_uri
        if self.mlflow_url is None:
            self.mlflow_port = chosen_port("FALLLINE_MLFLOW_PORT", LOOPBACK, settings.mlflow_port)
            self.mlflow_url = f"http://{LOOPBACK}:{self.mlflow_port}"
        self.ray_address = settings.ray_address
        self.token = new_token()
        self.pids: dict[str, int] = {}
        self._sign: float | None = None  # the controller's last, and when it came: the wall's clock may be moved
        self._sign_at = time.monotonic()
        self.api = SupervisedPart("api", self._api, settings.logs, API_GRACE)
        self.controller = SupervisedPart("controller", self._controller, settings.logs, CONTROLLER_GRACE)
        self.ray = None if settings.ray_address else SupervisedPart("ray", self._ray, settings.logs, RAY_GRACE)
        embedded = settings.mlflow_tracking_uri is None
        self.mlflow = SupervisedPart("mlflow", self._mlflow, settings.logs, MLFLOW_GRACE) if embedded else None

    def parts(self) -> list[SupervisedPart]:
        """The parts that this supervisor runs, in their order of starting."""
        return [part for part in (self.api, self.ray, self.mlflow, self.controller) if part is not None]

    # The commands. Built at every start.

    def _environment(self) -> dict[str, str]:
        named = {"FALLLINE_HOME": str(self.settings.home), "FALLLINE_PORT": str(self.port)}
        return own_environment() | named | {"FALLLINE_MLFLOW_TRACKING_URI": str(self.mlflow_url)}

    def _api(self) -> Command:
        return python_module("service.app", without_ray(self._environment()), self.settings.home)

    def _mlflow(self) -> Command:
        return mlflow_server(own_environment(), self.mlflow_port, self.settings.mlflow)

    def _ray(self) -> Command:
        port = free_port()
        self.ray_address = f"{LOOPBACK}:{port}"
        folder = new_ray_folder(self.settings.home)
        environment = ray_environment(self._environment(), self.token)  # whose home is absolute: workers read there
        return ray_head(environment, port, folder, self.settings.worker_slots)

    def _controller(self) -> Command:
        environment = self._environment()
        if self.ray is not None:
            environment = ray_environment(environment, self.token)
        environment["FALLLINE_RAY_ADDRESS"] = str(self.ray_address)
        return python_module("service.controller", environment, self.settings.home)

    # The run.

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.stops += 1

    def run(self) -> int:
        """Runs until a signal says otherwise. Returns 0; raises `ServeError` when the API does not come up."""
        launcher.become_subreaper()  # a launcher that is killed leaves its command to this process
        wanted = {number: self._on_signal for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            del wanted[signal.SIGHUP]  # nohup: the service outlives its terminal
        wanted[signal.SIGCHLD] = lambda _number, _frame: None  # ends `select` early
        before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
        wakeup = launcher.wakeup_pipe()
        try:
            with self._held_ports():
                self._start(wakeup)
                while not self.stops:
                    self._look()
                    self._pause(wakeup, 0.25)
        finally:
            self._end(wakeup)
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(wakeup)
        return 0

    def _held_ports(self) -> contextlib.ExitStack:
        """The own parts' ports are known before they listen there, and stay the same when they are started again:
        Ray's processes take any free ones meanwhile."""
        with contextlib.ExitStack() as ports:
            ports.enter_context(held(self.settings.host, self.port))
            if self.mlflow is not None:
                ports.enter_context(held(LOOPBACK, self.mlflow_port))
            return ports.pop_all()

    def _pause(self, wakeup: int, seconds: float) -> None:
        select([wakeup], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(wakeup, 4096)

    def _start(self, wakeup: int) -> None:
        (parts.run_folder(self.settings.home) / "status.json").unlink(missing_ok=True)
        self.api.start()
        first_until = time.monotonic() + API_FIRST_SECONDS
        while not self.stops and not self.accepts_jobs:
            self._look_at_api()
            if self.controller.child is None and (self.accepts_jobs or time.monotonic() > first_until):
                self._start_rest()
            self._pause(wakeup, 0.02)

    def _start_rest(self) -> None:
        """Ray and the controller now; MLflow, which only a job's end needs, when they no longer want the processors."""
        for part in (self.ray, self.controller):
            if part is not None:
                part.start()
        if self.mlflow is not None:
            self.mlflow.start_in(MLFLOW_DELAY_SECONDS)

    def _look_at_api(self) -> None:
        if (happened := self.api.look()) is not None:
            self.tell(happened)
            if self.api.failures >= API_ATTEMPTS:
                lines = self.api.log.read_text(errors="replace").splitlines()[-15:]
                raise ServeError("\n".join(["the API does not start; its log ends with:", *lines]))
        if listens(self.settings.host, self.port):
            self.accepts_jobs = True
            self._write_endpoints(self._pids())
            self.tell(f"Fall Line accepts jobs: {self.api_url} ({self._elapsed()}); home {self.settings.home}")

    def _elapsed(self) -> str:
        return f"{time.time() - self.started_at:.1f} s"

    def _look(self) -> None:
        """One look at every part."""
        for part in self.parts():
            if (happened := part.look()) is None:
                continue
            self.tell(happened)
            self._sweep_orphans()
            if part is self.ray:
                self.controller.restart()
            if part is self.controller and part.ended_with == parts.RAY_LOST and self.ray is not None:
                self._restart_if_old(self.ray)
        self._look_at_status()
        if self._are_pids_stale() and (pids := self._pids()) != self.pids:
            try:
                self._write_endpoints(pids)
            except OSError as error:
                if not disk.is_full(error):
                    raise  # else the next look tries again

    def _restart_if_old(self, part: SupervisedPart) -> None:
        """Not while it is still coming up: then it is what the others wait for."""
        if part.age() > SILENT_SECONDS / 2:
            part.restart()

    def _look_at_status(self) -> None:
        home, now = self.settings.home, time.monotonic()
        states = parts.read_parts(home, time.time())
        if not self.everything_is_up and all(part.state == "up" for part in states.values()):
            self.everything_is_up = True
            self.tell(f"everything is up ({self._elapsed()}): MLflow {self.mlflow_url}, Ray {self.ray_address}")
        if (sign := parts.last_sign(home)) != self._sign:
            self._sign, self._sign_at = sign, now
        silent = min(self.controller.age(), now - self._sign_at) > SILENT_SECONDS
        if self.controller.child is not None and silent:
            self.tell(f"controller silent for {SILENT_SECONDS:g} s, started again (see {self.controller.log})")
            self.controller.restart()

    def _are_pids_stale(self) -> bool:
        """A command is not below its launcher (any more): else a search through all processes is not worth it."""
        running = [(part.name, part.child.pid) for part in self.parts() if part.child is not None]
        return any(launcher.parent_of(self.pids.get(name, 0)) != pid for name, pid in running)

    def _pids(self) -> dict[str, int]:
        """The commands' own pids; a launcher's stands in for a command that is not there yet."""
        found = {"supervisor": os.getpid()}
        for part in self.parts():
            if part.child is not None:
                found[part.name] = launcher.child_of(part.child.pid) or part.child.pid
        return found

    def _write_endpoints(self, pids: dict[str, int]) -> None:
        content = {"api": self.api_url, "mlflow": self.mlflow_url, "ray": self.ray_address, "pids": pids}
        parts.write_atomically(parts.run_folder(self.settings.home) / "endpoints.json", content)
        self.pids = pids

    # The end.

    def _end(self, wakeup: int) -> None:
        begun, stops = time.monotonic(), self.stops
        for stage in ((self.api, self.controller), (self.ray, self.mlflow)):
            running = [part for part in stage if part is not None]
            for part in running:
                part.end()
            while not all(part.gone() for part in running):
                if self.stops > stops:  # asked again: at once
                    for part in self.parts():
                        part.kill()
                self._pause(wakeup, 0.25)
        self._sweep_orphans()
        for name in ("endpoints.json", "status.json"):
            (parts.run_folder(self.settings.home) / name).unlink(missing_ok=True)
        self.tell(f"Fall Line has ended ({time.monotonic() - begun:.1f} s)")

    def _sweep_orphans(self) -> None:
        """Kills what a killed launcher has left to this process."""
        launcher.kill_orphans({part.child.pid for part in self.parts() if part.child is not None})


def serve(settings: Settings, tell: Callable[[str], None] = say) -> int:
    """Runs the service in this process until it is asked to end. Raises `ServeError` when it cannot start."""
    settings.make_folders()
    with only_one(settings.home):
        return Supervisor(settings, tell).run()


if __name__ == "__main__":
    try:
        sys.exit(serve(Settings.from_environment(os.environ)))
    except ServiceError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
