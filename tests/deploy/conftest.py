"""The composition in the place of the services that tests elsewhere start: those that talk to a service over HTTP are
imported here, and find it under the names of their own fixtures."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from service.store import Store

from ..faults.conftest import Watched, all_faults, known, spec, undisturbed
from ..service.conftest import Api
from ..system.conftest import table
from .composition import Composition

__all__ = ["all_faults", "known", "spec", "table", "undisturbed"]  # fixtures


@pytest.fixture(scope="module")
def composition(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composition]:
    with Composition(tmp_path_factory.mktemp("compose")) as found:
        found.up()
        found.wait_until_ready()
        yield found


@pytest.fixture(scope="module")
def running(composition: Composition, table: Path) -> Iterator[Watched]:
    watched = Watched(composition)  # type: ignore[arg-type]
    watched.worker_slots = composition.worker_slots
    watched.client.datasets.upload(table, name="points")
    yield watched
    watched.client.close()


@pytest.fixture(scope="module")
def api(composition: Composition) -> Iterator[Api]:
    """As tests of the API alone have it."""
    settings = Settings.from_environment({"FALLLINE_HOME": str(composition.home)})
    with httpx.Client(base_url=composition.url, timeout=60.0) as client:
        with closing(Store(f"sqlite:///{composition.database}")) as store:
            yield Api(settings, client, store, app=None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def environ(composition: Composition) -> dict[str, str]:
    """By which the command line finds it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FALLLINE_")}
    return {**inherited, "FALLLINE_URL": composition.url}
