"""What a long queue costs who submits: seconds of a submission beside 10,000 queued jobs, and beside none.

Usage: python -m benchmarks queue     (starts a service of its own in a temporary home)
"""

import statistics
import tempfile
from pathlib import Path

from benchmarks.latency import LONG, SMALL, seconds
from benchmarks.race import Options
from benchmarks.rows import Row
from benchmarks.tables import TABLES
from service.client import FallLine
from service.idempotency import new_id
from service.local_service import LocalService
from service.store import Store

QUEUED, SUBMISSIONS = 10_000, 300
LIMITS = {"FALLLINE_MAX_RUNNING_JOBS": "1", "FALLLINE_MAX_QUEUED_JOBS": str(2 * QUEUED)}


def submissions(client: FallLine) -> list[float]:
    """Seconds of each submission, while one job trains; what was submitted is cancelled at once."""
    found: list[float] = []
    for _ in range(SUBMISSIONS):
        submitted: list[str] = []
        found.append(seconds(lambda: submitted.append(client.jobs.submit(SMALL)["id"])))  # noqa: B023
        client.jobs.cancel(submitted[0])
    return found


def fill(home: Path, job_id: str) -> None:
    """QUEUED further jobs like that one, written into the store as the API does it."""
    store = Store(f"sqlite:///{home / 'fallline.db'}")
    like = store.get_job(job_id)
    for _ in range(QUEUED):
        store.create_job(new_id("job"), like.name, like.dataset_id, like.spec, like.plan, {}, None)
    store.close()


def p99(found: list[float]) -> float:
    """The second that 99 of 100 submissions do not reach."""
    return statistics.quantiles(found, n=100)[98]


def run(_results: Path, _options: Options) -> list[Row]:
    """One row: ours is the 99th percentile beside a long queue, the peer's beside an empty one."""
    with LocalService(environ=LIMITS) as service, FallLine(service.url) as client:
        with tempfile.TemporaryDirectory() as folder:
            service.wait_until_ready()
            client.datasets.upload(TABLES["digits"]().write_csv(Path(folder) / "digits.csv"), name="digits")
            training = client.jobs.submit(LONG)["id"]
            empty = submissions(client)
            fill(service.home, training)
            full = submissions(client)
    case = f"a submission beside {QUEUED:,} queued jobs, and beside none: p99"
    return [Row("queue", case, 1000 * p99(full), 1000 * p99(empty), "ms", p99(full) / p99(empty), 2.0, ceiling=True)]
