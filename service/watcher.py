"""One look at the store for all event streams: they sleep until something has happened anywhere.

The counters are one small read each; 500 open streams cost no more than one, and share what they read when woken.
"""

import asyncio
import logging
from collections.abc import Callable

from service.errors import StoreUnavailable
from service.store import Store

log = logging.getLogger(__name__)
LOOK_S = 0.1
LOOKS_A_LOG = 100  # a store that is away for an hour does not fill the log


class Watcher:
    """Wakes streams when an event was written, and tells `on_deployment` when a deployment has changed."""

    def __init__(self, store: Store, on_deployment: Callable[[], None]) -> None:
        self._store, self._on_deployment = store, on_deployment
        self._happened = asyncio.Event()
        self.stopping = False
        self.failures = 0  # looks at the store that failed

    async def run(self) -> None:
        """Look until `stop`."""
        events = deployments = -1
        while not self.stopping:
            try:
                found = await asyncio.to_thread(self._look)
            except Exception as error:  # whatever befalls the store: all streams hang on this loop
                if self.failures % LOOKS_A_LOG == 0:
                    log.error("%s", error, exc_info=None if isinstance(error, StoreUnavailable) else error)
                self.failures += 1
                found = (events, deployments)
            if found[0] != events:
                events = found[0]
                self._wake()
            if found[1] != deployments:
                deployments = found[1]
                self._on_deployment()
            await asyncio.sleep(LOOK_S)

    def stop(self) -> None:
        """End `run`, and every stream that waits."""
        self.stopping = True
        self._wake()

    def next_event(self) -> asyncio.Event:
        """What is set when something happens from now on."""
        return self._happened

    async def wait(self, happened: asyncio.Event, seconds: float) -> bool:
        """Whether `happened` was set within `seconds`."""
        try:
            await asyncio.wait_for(happened.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _wake(self) -> None:
        self._happened.set()
        self._happened = asyncio.Event()

    def _look(self) -> tuple[int, int]:
        return self._store.last_event_number(), self._store.last_deployment_number()
