"""/v1/jobs/{id}/checkpoints: what a job, or one that is started from it, may go on from."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from service import answers
from service.answers import Answer
from service.context import Context, context
from service.errors import ApiError
from worker.checkpoint_store import CheckpointStore
from worker.errors import CheckpointStorageError

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
Parts = Annotated[Context, Depends(context)]


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    parts: Parts,
    job_id: str,
    after: Annotated[int | None, Query(ge=1)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """The job's checkpoints, newest first; `after` is a step."""
    job = parts.store.get_job(job_id)
    try:
        found = CheckpointStore(parts.settings.checkpoints / job.id).list()
    except CheckpointStorageError as error:
        raise ApiError(503, "storage_unavailable", str(error)) from error
    following = [each for each in found if after is None or each.step < after]
    data = [answers.checkpoint(each) for each in following[:limit]]
    return Answer(answers.listed(data, len(following) > limit, key="step"))
