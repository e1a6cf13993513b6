"""What there is to see of a running service: its API, its store's leases, MLflow over REST, its processes in /proc.

Data alone; `invariants` says what is wrong with it.
"""

import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from service import launcher
from service.tracked import JOB_TAG

Json = dict[str, Any]
Series = Mapping[str, list[tuple[int, float]]]  # points (step, value) by the series' name, in the order of steps

SHARED_MEMORY = Path("/dev/shm")
_POINTS, _VERSIONS = 25_000, 1_000  # of one answer of MLflow's


@dataclass(frozen=True)
class JobPicture:
    """One job. What MLflow knows of it was asked for those jobs alone that the look was to be thorough about."""

    job: Json  # as the API shows it
    lease_expires_at: float | None = None  # Unix seconds; None: nobody holds it
    series: Series = field(default_factory=dict)
    tracked: Series | None = None  # MLflow's; None: not asked for
    listed_versions: tuple[int, ...] = ()  # of its model, in the API
    tracked_versions: tuple[int, ...] = ()  # in MLflow's registry


@dataclass(frozen=True)
class Picture:
    """The service at one moment. Processes are titles by pid."""

    taken_at: float  # Unix seconds
    acknowledged: frozenset[str]  # ids of the jobs that were answered with 201
    jobs: Mapping[str, JobPicture]  # all that the service lists
    worker_slots: int
    processes: Mapping[int, str]  # all below the supervisor
    escaped: Mapping[int, str]  # those that were below it and live on elsewhere
    files: frozenset[str]  # of ours in /dev/shm


class Family:
    """The processes of a service, and those that have been: one that leaves the family and lives on is an orphan."""

    def __init__(self, supervisor: int) -> None:
        self._supervisor = supervisor
        self._seen: dict[int, str] = {}  # pid -> when it was started: numbers are used again
        self.look()

    def look(self) -> dict[int, str]:
        """The titles of all that live below the supervisor."""
        found = {pid: title(pid) for pid in launcher.descendants(self._supervisor)}
        self._seen |= {pid: started(pid) for pid in found}
        return {pid: name for pid, name in found.items() if name}

    def escaped(self) -> dict[int, str]:
        """Those that were in the family and are alive outside of it."""
        living = launcher.descendants(self._supervisor)
        outside = [pid for pid, start in self._seen.items() if pid not in living and start and started(pid) == start]
        return {pid: title(pid) or "a process that nobody has waited for" for pid in outside}


def title(pid: int) -> str:
    """What `ps` shows; "" when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def started(pid: int) -> str:
    """The clock tick in which it was started, field 22 of /proc/PID/stat; "" when it does not exist."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat[stat.rindex(b")") + 2 :].split()[19].decode()


def take(
    running: Any, family: Family, acknowledged: Collection[str], thorough: Collection[str], worker_slots: int
) -> Picture:
    """`running`: a Service of tests/system/conftest.py. `thorough`: the jobs whose points and versions are read."""
    jobs = {}
    for page in _pages(running.client.jobs.list):
        leases = _leases(running.local.database)  # for each page: jobs of a long list come and go meanwhile
        jobs |= {job["id"]: JobPicture(job, leases.get(job["id"])) for job in page}
    with httpx.Client(base_url=f"{running.local.endpoints['mlflow']}/api/2.0/mlflow", timeout=30) as mlflow:
        for job_id in jobs.keys() & set(thorough):
            jobs[job_id] = _thorough(running, mlflow, jobs[job_id])
    return Picture(
        taken_at=time.time(),
        acknowledged=frozenset(acknowledged),
        jobs=jobs,
        worker_slots=worker_slots,
        processes=family.look(),
        escaped=family.escaped(),
        files=frozenset(path.name for path in SHARED_MEMORY.glob("fallline-*")),
    )


def tracked_points(mlflow: httpx.Client, run_id: str, series: str) -> list[Json]:
    """All points of one series as MLflow keeps them: `step`, `value`, `timestamp` in milliseconds."""
    asked = {"run_id": run_id, "metric_key": series, "max_results": _POINTS}
    return list(_all(mlflow, "metrics/get-history", asked, "metrics"))


def _thorough(running: Any, mlflow: httpx.Client, seen: JobPicture) -> JobPicture:
    job = seen.job
    found = running.client.jobs.metrics(job["id"])["series"]
    tracked, listed, registered = {}, [], []
    if job["mlflow"] is not None:
        run = job["mlflow"]["run_id"]
        told = _get(mlflow, "runs/get", {"run_id": run})["run"]["data"].get("metrics", [])
        for name in {metric["key"] for metric in told}:
            points = tracked_points(mlflow, run, name)
            tracked[name] = sorted((int(point["step"]), float(point["value"])) for point in points)
    name = (job["spec"].get("model") or {}).get("name")
    if name is not None:
        asked = {"filter": f"name = '{name}'", "max_results": _VERSIONS}
        for version in _all(mlflow, "model-versions/search", asked, "model_versions"):
            if {"key": JOB_TAG, "value": job["id"]} in version.get("tags", []):
                registered.append(int(version["version"]))
    if job["model"] is not None:
        versions = running.client.models.show(job["model"]["name"])["versions"]
        listed = [version["version"] for version in versions if version["job_id"] == job["id"]]
    return JobPicture(
        job=job,
        lease_expires_at=seen.lease_expires_at,
        series={name: list(zip(points["steps"], points["values"], strict=True)) for name, points in found.items()},
        tracked=tracked,
        listed_versions=tuple(listed),
        tracked_versions=tuple(registered),
    )


def _leases(database: Path) -> dict[str, float]:
    """When the lease of each running job ends, by the job's id. No answer of the API shows them."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as connection:
        rows = connection.execute("SELECT id, lease_expires_at FROM jobs WHERE status = 'running'").fetchall()
    return {job_id: expires_at for job_id, expires_at in rows if expires_at is not None}


def _pages(listing: Callable[..., Json]) -> Iterator[list[Json]]:
    after = None
    while True:
        page = listing(limit=100, after=after)
        yield page["data"]
        if not page["has_more"]:
            return
        after = page["last_id"]


def _get(mlflow: httpx.Client, path: str, asked: Json) -> Json:
    answer: Json = mlflow.get(path, params=asked).raise_for_status().json()
    return answer


def _all(mlflow: httpx.Client, path: str, asked: Json, name: str) -> Iterator[Json]:
    token = None
    while True:
        page = _get(mlflow, path, asked if token is None else {**asked, "page_token": token})
        yield from page.get(name, [])
        token = page.get("next_page_token")
        if not token:
            return
