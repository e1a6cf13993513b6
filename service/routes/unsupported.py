"""Routes of the contract that later parts bring: refused by name, so that nobody takes them for a typing error."""

from fastapi import APIRouter
from starlette.responses import Response

from service.errors import ApiError

router = APIRouter()
ROUTES = (
    ("GET", "/v1/datasets/{dataset}/preview"),
    ("POST", "/v1/models/{name}/invocations"),
    ("GET", "/v2"),
    ("GET", "/v2/{rest:path}"),
    ("POST", "/v2/{rest:path}"),
    ("GET", "/metrics"),
)


def _refuse() -> Response:
    raise ApiError(501, "not_supported_yet", "this route is not supported yet")


for method, path in ROUTES:
    router.add_api_route(path, _refuse, methods=[method], include_in_schema=False)
