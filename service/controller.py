"""The controller's process: one loop that turns the jobs, one thread that talks to MLflow, and signs of life.

It is crash-only. When Ray is lost it ends with RAY_LOST; the supervisor starts Ray and another controller, which takes
the lead and the jobs over: at once where the last one is known to be gone, else when its lease has run out. Until then
it stands by. One that was stopped for longer than its lease ends with LEAD_LOST as soon as it goes on. API and
controller meet in the store alone.
"""

import logging
import os
import signal
import sys
import threading
import time
from types import FrameType

from service.artifacts import ArtifactStore
from service.disk import DiskWatch
from service.errors import LeadLost, StoreUnavailable
from service.job_keeper import JobKeeper
from service.lead import Lead
from service.migrate import migrate
from service.parts import LEAD_LOST, RAY_LOST, STORE_UNAVAILABLE, Part, last_sign, run_folder, write_parts
from service.ports import listens
from service.process_identity import identity
from service.publisher import MlflowServer, Publisher
from service.settings import Settings
from service.store import Store
from worker.cluster import Cluster
from worker.errors import ClusterLost

log = logging.getLogger(__name__)
TURN_SECONDS = 0.15
SIGN_SECONDS = 1.0
STAND_BY_SECONDS = 0.5
NOBODY_SIGNS_SECONDS = 5.0
RAY_START_SECONDS = 60.0
PUBLISHER_DELAY_SECONDS = 10.0
BUG = 70  # exit code


class Controller:
    """Everything of the process. SIGTERM or SIGINT ends it after the turn it is in."""

    def __init__(self, settings: Settings) -> None:
        """Opens the store, whose schema is brought up to date if need be."""
        self.settings = settings
        migrate(settings.database_url)
        self.store = Store(settings.database_url)
        self.artifacts = ArtifactStore(settings.artifacts)
        self.lead = Lead(self.store, identity(), settings.lease_seconds)
        self.disks = DiskWatch(settings.written, settings.disk_reserve_bytes)
        self.led = self.store.led_by(self.lead.owner)  # what is written here must not come late
        self.publisher = Publisher(self.led, self.artifacts, self._connect_mlflow, lambda: self.lead.is_held)
        self.stopping = threading.Event()
        self.began = time.time()
        self.ray = Part("starting", self.began, f"joining {settings.ray_address}")
        self._signed_at = 0.0

    def run(self) -> int:
        """Runs until `stopping` is set; returns the exit code. In the main thread, as `ray.init` needs it."""
        self._handle_signals()
        run_folder(self.settings.home).mkdir(exist_ok=True)
        try:
            if not self._take_lead():
                return 0
            self.artifacts.sweep()
            keeper = self._join_ray()
            while keeper is not None and not self.stopping.wait(TURN_SECONDS):
                self._sign_of_life()
                self._start_publisher()
                if not self.publisher.is_alive():
                    log.error("the publisher has ended; its error stands above")
                    return BUG
                keeper.turn()
            if keeper is not None:
                keeper.save()
        except ClusterLost as error:
            log.error("%s", error)
            return RAY_LOST
        except LeadLost as error:
            log.warning("%s", error)
            return LEAD_LOST
        except StoreUnavailable as error:  # at the start; later ones are sat out
            log.error("%s", error)
            return STORE_UNAVAILABLE
        return 0

    def _take_lead(self) -> bool:
        """Stands by until no other controller works; False: asked to stop meanwhile.

        It signs for the one that works only where nobody does: that one may hang, or belong to another home.
        """
        if self.lead.take():
            return True
        leader = self.store.leader()
        log.info("stands by: %s leads", leader and leader.owner)
        while not self.stopping.wait(STAND_BY_SECONDS):
            if self.lead.take():
                log.info("leads from now on")
                return True
            seen = last_sign(self.settings.home)
            if seen is None or time.time() - seen > NOBODY_SIGNS_SECONDS:
                self._sign_of_life()
        return False

    def _handle_signals(self) -> None:
        def stop(_number: int, _frame: FrameType | None) -> None:
            self.stopping.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)

    def _connect_mlflow(self) -> MlflowServer:
        from service.tracking import Tracking  # here, in the publisher's thread: it takes seconds

        return Tracking(self.settings.mlflow_url)

    def _start_publisher(self) -> None:
        """Once Ray is there, or is long in coming: importing MLflow takes seconds that jobs would wait for."""
        if self.publisher.ident is None:
            self.publisher.start()

    def _join_ray(self) -> JobKeeper | None:
        """Waits for Ray, joins it, takes over the jobs; None: asked to stop meanwhile. Raises ClusterLost."""
        address = self.settings.ray_address or ""
        host, _, port = address.rpartition(":")
        begun = time.monotonic()
        while not listens(host, int(port)):
            self.lead.hold()
            self._sign_of_life()
            if self.stopping.wait(0.1):
                return None
            if time.monotonic() - begun > PUBLISHER_DELAY_SECONDS:
                self._start_publisher()
            if time.monotonic() - begun > RAY_START_SECONDS:
                raise ClusterLost(f"nothing listens on {address}")
        settings = self.settings
        cluster = Cluster(
            address,
            settings.trainer_orphan_seconds,
            settings.exchange,
            settings.placement,
            settings.node_rest_seconds,
        )
        self._handle_signals()  # again: joining puts handlers of Ray's in their place
        keeper = JobKeeper(self.led, cluster, self.artifacts, self.settings, self.lead, self.disks)
        keeper.adopt()
        self.ray = Part("up", time.time())
        log.info("joined %s", address)
        return keeper

    def _sign_of_life(self) -> None:
        """Tells how the parts are, once a second."""
        if time.monotonic() - self._signed_at > SIGN_SECONDS:
            parts = {"controller": Part("up", self.began), "ray": self.ray, "mlflow": self.publisher.part}
            write_parts(self.settings.home, parts, time.time())
            self._signed_at = time.monotonic()


def main() -> int:
    """The process. Returns its exit code, if it gets so far."""
    settings = Settings.from_environment(os.environ)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    code = Controller(settings).run()
    log.info("ends with %d", code)
    logging.shutdown()
    # Not sys.exit: leaving Ray in order may take seconds, more when it is dead, and MLflow's thread may be in a call.
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
