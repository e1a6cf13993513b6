"""What every route of the API works with, made once at the start."""

import asyncio
from dataclasses import dataclass, field

from starlette.requests import Request

from service.predictor import Predictor
from service.resolve import Limits
from service.settings import Settings
from service.store import Store
from service.watcher import Watcher
from worker.machine_memory import total_bytes

CHECKS_AT_ONCE = 2


@dataclass(frozen=True)
class Context:
    """The API process's parts."""

    settings: Settings
    store: Store
    predictor: Predictor
    watcher: Watcher
    # Each check of an upload may take service.ingest.IngestLimits of memory and a core: further ones wait.
    checks: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CHECKS_AT_ONCE))

    @property
    def limits(self) -> Limits:
        """What a job may ask for."""
        here = self.settings.ray_address is None  # else the machines that train are others, of unknown size
        return Limits(self.settings.max_parameters, self.settings.worker_slots, total_bytes() if here else None)


def context(request: Request) -> Context:
    """The parts, from the application that answers `request`."""
    found: Context = request.app.state.context
    return found
