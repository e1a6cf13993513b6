"""/v1/models: registered models, their versions, and which one is deployed."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from service import answers
from service.answers import Answer
from service.bodies import read_object, validated
from service.context import Context, context
from service.routes.parameters import VersionNumber
from service.schemas import DeployRequest

router = APIRouter(prefix="/v1/models", tags=["models"])
Parts = Annotated[Context, Depends(context)]
ACTOR = "api"  # who deploys, until there are API keys
_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": DeployRequest.model_json_schema()}}}
}


def _model(parts: Context, name: str) -> answers.Json:
    return answers.model(parts.store.get_model(name), parts.store.list_versions(name))


@router.get("")
def list_models(parts: Parts, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> Response:
    """All models with their versions, newest first."""
    found = parts.store.list_models(limit, after)
    return Answer(
        answers.page(found, lambda model: answers.model(model, parts.store.list_versions(model.name)), key="name")
    )


@router.get("/{name}")
def show_model(parts: Parts, name: str) -> Response:
    """One model."""
    return Answer(_model(parts, name))


@router.get("/{name}/versions/{version}")
def show_version(parts: Parts, name: str, version: VersionNumber) -> Response:
    """One version."""
    return Answer(
        answers.version(parts.store.get_version(name, version), parts.store.get_model(name).production_version)
    )


@router.post("/{name}/deploy", openapi_extra=_BODY)
async def deploy(request: Request, parts: Parts, name: str) -> Response:
    """Serve a version from now on, without dropping a request."""
    wanted = validated(DeployRequest, (await read_object(request))[0])
    await run_in_threadpool(parts.store.deploy, name, wanted.version, ACTOR, wanted.force)
    parts.predictor.forget_deployments()
    return Answer(await run_in_threadpool(_model, parts, name))


@router.post("/{name}/rollback")
def rollback(parts: Parts, name: str) -> Response:
    """Serve what was deployed before."""
    parts.store.rollback(name, ACTOR)
    parts.predictor.forget_deployments()
    return Answer(_model(parts, name))


@router.delete("/{name}/deployment", status_code=204)
def undeploy(parts: Parts, name: str) -> Response:
    """Serve no version any more."""
    parts.store.undeploy(name, ACTOR)
    parts.predictor.forget_deployments()
    return Response(status_code=204)


@router.get("/{name}/deployments")
def deployments(parts: Parts, name: str, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> Response:
    """Who deployed what, newest first."""
    found = parts.store.list_deployments(name, limit + 1)
    return Answer(answers.listed([answers.deployment(d) for d in found[:limit]], len(found) > limit))
