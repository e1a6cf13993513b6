"""A job's checkpoints over HTTP, and that they go with the job."""

from pathlib import Path

import httpx
import numpy as np
import pytest

from worker.checkpoint import Checkpoint
from worker.checkpoint_store import CheckpointStore

from .conftest import Api


@pytest.fixture
def job(api: Api) -> str:
    """A queued one."""
    api.upload(name="flowers")
    return str(api.client.post("/v1/jobs", json={"dataset": "flowers", "target": "kind"}).json()["id"])


def folder(api: Api, job: str) -> Path:
    return api.settings.checkpoints / job


def save(api: Api, job: str, step: int) -> None:
    vector = np.ones(5, np.float32)
    kept = Checkpoint(job, 1, "5" * 64, "numpy", step, step // 10, vector, np.ones((2, 5), np.float32))
    CheckpointStore(folder(api, job)).save(kept)


def listed(api: Api, job: str, **parameters: int) -> httpx.Response:
    return api.client.get(f"/v1/jobs/{job}/checkpoints", params=parameters)


def test_they_are_listed_newest_first(api: Api, job: str) -> None:
    assert listed(api, job).json() == {
        "object": "list",
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }
    for step in (10, 20, 31):
        save(api, job, step)
    (folder(api, job) / "step-20" / "manifest.json").write_text("{}")  # broken: nothing to go on from
    answer = listed(api, job).json()
    newest = answer["data"][0]
    assert newest.keys() == {"object", "step", "epoch", "bytes", "sha256", "created_at"}
    assert (newest["object"], newest["step"], newest["epoch"]) == ("checkpoint", 31, 3)
    files = (folder(api, job) / "step-31").iterdir()
    assert newest["bytes"] == sum(path.stat().st_size for path in files)
    assert len(newest["sha256"]) == 64
    assert (answer["has_more"], answer["first_id"], answer["last_id"]) == (False, 31, 10)
    assert (folder(api, job) / "step-20").exists()  # a look changes nothing


def test_they_come_page_by_page(api: Api, job: str) -> None:
    for step in (10, 20, 31):
        save(api, job, step)
    first = listed(api, job, limit=2).json()
    assert ([each["step"] for each in first["data"]], first["has_more"]) == ([31, 20], True)
    rest = listed(api, job, limit=2, after=first["last_id"]).json()
    assert ([each["step"] for each in rest["data"]], rest["has_more"]) == ([10], False)


def test_wrong_questions_are_refused(api: Api, job: str) -> None:
    assert listed(api, "job_none").json()["error"]["code"] == "not_found"
    assert listed(api, job, limit=101).json()["error"]["param"] == "limit"
    assert listed(api, job, after=0).json()["error"]["param"] == "after"
    folder(api, job).touch()
    refusal = listed(api, job)
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "storage_unavailable")
    folder(api, job).unlink()


def test_an_ended_jobs_checkpoints_stay_until_it_is_deleted(api: Api, job: str) -> None:
    save(api, job, 10)
    assert api.client.delete(f"/v1/jobs/{job}").status_code == 409
    assert folder(api, job).exists()
    api.client.post(f"/v1/jobs/{job}/cancel")
    assert [each["step"] for each in listed(api, job).json()["data"]] == [10]
    assert api.client.delete(f"/v1/jobs/{job}").status_code == 204
    assert not folder(api, job).exists()
