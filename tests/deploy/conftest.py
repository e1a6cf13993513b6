"""The composition in the place of the service that the tests of tests/system and tests/faults start: those that talk to
a service over HTTP are imported here, and find it under the names of their own fixtures."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..faults.conftest import Watched, all_faults, known, spec, undisturbed
from ..system.conftest import new_service, table
from .composition import Composition

__all__ = ["all_faults", "known", "new_service", "spec", "table", "undisturbed"]  # fixtures


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
def url(composition: Composition) -> str:
    """MLflow's."""
    return str(composition.endpoints["mlflow"])


@pytest.fixture(scope="module")
def service(composition: Composition) -> Composition:
    return composition


@pytest.fixture(scope="module")
def environ(composition: Composition) -> dict[str, str]:
    """By which the command line finds it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FALLLINE_")}
    return {**inherited, "FALLLINE_URL": composition.url}
