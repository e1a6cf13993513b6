"""What every route of the API works with, made once at the start."""

from dataclasses import dataclass

from starlette.requests import Request

from service.predictor import Predictor
from service.resolve import Limits
from service.settings import Settings
from service.store import Store
from service.watcher import Watcher
from worker.machine_memory import total_bytes


@dataclass(frozen=True)
class Context:
    """The API process's parts."""

    settings: Settings
    store: Store
    predictor: Predictor
    watcher: Watcher

    @property
    def limits(self) -> Limits:
        """What a job may ask for."""
        here = self.settings.ray_address is None  # else the machines that train are others, of unknown size
        return Limits(self.settings.max_parameters, self.settings.worker_slots, total_bytes() if here else None)


def context(request: Request) -> Context:
    """The parts, from the application that answers `request`."""
    found: Context = request.app.state.context
    return found
