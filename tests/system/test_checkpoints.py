"""Jobs that go on from their checkpoints, in a whole service whose processes are killed.

What must hold each time: the weights and every metric point of the undisturbed job, and one version of the model.
"""

from typing import Any

import pytest

pytestmark = pytest.mark.system

SPEC: dict[str, Any] = {
    "dataset": "points",
    "target": "kind",
    # Long enough for some checkpoints, and for a fault after them.
    "training": {
        "epochs": 1000,
        "batch_size": 128,
        "early_stopping": {"patience": 900},
        "log_every_steps": 40,
        "checkpoint_every_seconds": 1,
    },
    "network": {"dropout": 0.1},
    "distribution": {"workers": 2, "shards": 2},
}


@pytest.fixture(scope="module")
def undisturbed(running: Any) -> dict[str, Any]:
    """What every job of SPEC must come to."""
    return outcome(running, submitted(running))


def submitted(running: Any, **changes: Any) -> str:
    return str(running.client.jobs.submit({**SPEC, **changes})["id"])


def outcome(running: Any, job_id: str, seconds: float = 120) -> dict[str, Any]:
    """The weights and the series of a job, which has succeeded within `seconds` and has one version."""
    job = running.job(job_id, running.ended, seconds)
    assert job["status"] == "succeeded", job["error"]
    versions = running.client.models.show("points")["versions"]
    assert [each["version"] for each in versions if each["job_id"] == job_id] == [job["model"]["version"]]
    result = {name: job["result"][name] for name in ("weights_sha256", "model_sha256", "best_epoch", "steps")}
    return result | {"series": running.client.jobs.metrics(job_id)["series"]}


def steps_kept(running: Any, job_id: str) -> list[int]:
    """Newest first."""
    return [each["step"] for each in running.client.jobs.checkpoints(job_id)["data"]]


def messages(running: Any, job_id: str, kind: str) -> list[str]:
    return [e["message"] for e in running.client.jobs.events_page(job_id, limit=1000)["data"] if e["type"] == kind]


def resumed_at(running: Any, job_id: str) -> list[int]:
    """The steps that attempts of the job went on from."""
    begins = "goes on from the checkpoint of step "
    return [int(m.removeprefix(begins)) for m in messages(running, job_id, "checkpoint") if m.startswith(begins)]


def pause(running: Any, job_id: str) -> None:
    """In training, some steps after what it began with."""
    began = max(resumed_at(running, job_id), default=0)
    running.job(job_id, lambda job: running.step(job) > began + 50)
    running.client.jobs.pause(job_id)
    running.job(job_id, lambda job: job["status"] == "paused")


def resume(running: Any, job_id: str) -> None:
    """Until it is in training again."""
    before = len(resumed_at(running, job_id))
    running.client.jobs.resume(job_id)
    running.wait_for(lambda: len(resumed_at(running, job_id)) > before, 60, "the job going on")


def test_a_paused_job_goes_on_where_it_was(running: Any, undisturbed: dict[str, Any]) -> None:
    job_id = submitted(running)
    pause(running, job_id)
    step = steps_kept(running, job_id)[0]
    assert running.client.jobs.show(job_id)["progress"]["step"] == step
    running.client.jobs.resume(job_id)
    assert outcome(running, job_id) == undisturbed
    assert resumed_at(running, job_id) == [step]


def test_so_does_one_that_exchanges_objects(running: Any) -> None:
    """max_norm goes across blocks: parameters and state are those of an aggregator."""
    changes = {
        "optimizer": {"name": "adam", "max_norm": 2.0},
        "training": {**SPEC["training"], "epochs": 400, "early_stopping": {"patience": 350}},
    }
    wanted = outcome(running, submitted(running, **changes))
    job_id = submitted(running, **changes)
    pause(running, job_id)
    step = steps_kept(running, job_id)[0]
    running.client.jobs.resume(job_id)
    assert outcome(running, job_id) == wanted
    assert resumed_at(running, job_id) == [step]
