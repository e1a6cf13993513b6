"""What every route of the API works with, made once at the start."""

from dataclasses import dataclass

from starlette.requests import Request

from service.predictor import Predictor
from service.resolve import Limits
from service.settings import Settings
from service.store import Store
from service.watcher import Watcher


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
        return Limits(self.settings.max_parameters, self.settings.worker_slots)


def context(request: Request) -> Context:
    """The parts, from the application that answers `request`."""
    found: Context = request.app.state.context
    return found
