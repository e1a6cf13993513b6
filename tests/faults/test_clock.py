"""The clock on the wall of a whole service moved by an hour, forth and back, while jobs train, wait and are lost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..system.conftest import service_with_points
from .conftest import LEASE_SECONDS, PATIENCE_S, THOROUGH, WORKER_SLOTS, Watched
from .picture import JobPicture, Json

pytestmark = [pytest.mark.system, THOROUGH]
HOUR = 3600


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that says by how many seconds it is off."""
    path = tmp_path_factory.mktemp("clock") / "shift"
    path.write_text("0")
    return path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, table: Path, clock: Path) -> Iterator[Watched]:
    environ = {"PYTHONPATH": str(Path(__file__).with_name("moved_clock")), "MOVED_CLOCK": str(clock)}
    environ |= {"FALLLINE_WORKER_SLOTS": str(WORKER_SLOTS), "FALLLINE_LEASE_SECONDS": str(LEASE_SECONDS)}
    with service_with_points(Watched, tmp_path_factory.mktemp("home"), table, environ) as watched:
        yield watched


@pytest.mark.parametrize("shifts", [(HOUR, 0), (-HOUR, 0)], ids=["forth and back", "back and forth"])
def test_a_moved_clock_changes_nothing(
    running: Any, spec: Json, undisturbed: JobPicture, clock: Path, shifts: tuple[int, int]
) -> None:
    controller = running.pid("controller")
    job_id = running.training(spec)
    for shift in shifts:
        with running.work_goes_on(job_id, f"the clock at {shift:+d} s"):
            partial = clock.with_name("partial")
            partial.write_text(str(shift))
            partial.rename(clock)
        running.succeeded(job_id, undisturbed)
        job_id = running.training(spec)  # claimed and started by the new time
        with running.work_goes_on(job_id, f"kill -9 of the trainer, the clock at {shift:+d} s"):
            running.kill_all("TrainerHost")
        running.wait_for(running.is_ready, PATIENCE_S, "all parts")
    running.succeeded(job_id, undisturbed)
    assert [event["id"] for event in running.events(job_id)] == list(range(1, len(running.events(job_id)) + 1))
    assert running.local.endpoints["pids"]["controller"] == controller, "the clock has ended it"
