"""/v1/models/{name}/predict: rows in, predictions out. The one path where microseconds count."""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from service.answers import Answer
from service.context import Context, context
from service.errors import ApiError
from service.routes.parameters import VersionNumber
from service.schemas import PredictRequest

router = APIRouter(prefix="/v1/models", tags=["predictions"])
Parts = Annotated[Context, Depends(context)]
SMALL = 32  # rows that are computed faster than a thread is woken
_SCHEMA = PredictRequest.model_json_schema()
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}}
_FIELDS = frozenset(PredictRequest.model_fields)


@router.post("/{name}/predict", openapi_extra=_BODY)
async def predict(request: Request, parts: Parts, name: str) -> Response:
    """Predictions of the deployed version."""
    return await _predict(request, parts, name, None)


@router.post("/{name}/versions/{version}/predict", openapi_extra=_BODY)
async def predict_version(request: Request, parts: Parts, name: str, version: VersionNumber) -> Response:
    """Predictions of one version, deployed or not."""
    return await _predict(request, parts, name, version)


async def _predict(request: Request, parts: Context, name: str, version: int | None) -> Answer:
    instances, outputs = _rows(await request.body())
    if len(instances) <= SMALL:
        chosen, predictions = parts.predictor.predict(name, version, instances, outputs)
    else:
        chosen, predictions = await run_in_threadpool(parts.predictor.predict, name, version, instances, outputs)
    return Answer({"model": name, "version": chosen, "predictions": predictions})


def _rows(body: bytes) -> tuple[list[Any], list[str] | None]:
    """`instances` and `outputs`: checked by hand, since a schema's check costs more than the forward pass."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON (which has no NaN): {error}") from error
    if not isinstance(data, dict):
        raise ApiError(422, "invalid_request", 'expected {"instances": [...]}', "instances")
    for field in data.keys() - _FIELDS:
        raise ApiError(422, "invalid_request", f"{field} is not a known field", field)
    instances, outputs = data.get("instances"), data.get("outputs")
    if not isinstance(instances, list) or not instances:
        raise ApiError(422, "invalid_request", "instances: expected a list of at least one row", "instances")
    if outputs is not None and not (isinstance(outputs, list) and all(isinstance(item, str) for item in outputs)):
        raise ApiError(422, "invalid_request", "outputs: expected a list of names", "outputs")
    return instances, outputs
