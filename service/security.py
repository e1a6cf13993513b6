"""What is checked of every request before a route sees it: whom it is addressed to, where it comes from, its size.

A local server can be reached from any web page, by a name that resolves to loopback (DNS rebinding) or by a form: only
names of this machine are answered, and an Origin must be one of them.
"""

import re
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.error_answers import error_answer

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^\[\]:/@?#\s]+)(:\d*)?")
UPLOADS, UPLOAD_SLACK = "/v1/datasets", 1 << 20  # a multipart body is a little larger than its file


class TooLarge(Exception):
    """The body went beyond the limit."""


class Guard:
    """ASGI middleware: Host, Origin and body size."""

    def __init__(self, app: ASGIApp, names: frozenset[str], max_body: int, max_upload: int) -> None:
        self._app, self._names = app, LOOPBACK_NAMES | names
        self._max_body, self._max_upload = max_body, max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self._refusal(headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        limit = self._max_upload + UPLOAD_SLACK if scope["path"] == UPLOADS else self._max_body
        too_large = error_answer(413, "too_large", f"the body is larger than {limit:,} bytes", details={"limit": limit})
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 20) or int(length) > limit:
            await too_large(scope, receive, send)
            return
        read, started = 0, False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except TooLarge:
            if started:
                raise
            await too_large(scope, receive, send)

    def _refusal(self, headers: dict[str, str]) -> ASGIApp | None:
        host = HOST.fullmatch(headers.get("host", ""))
        if host is None or host["name"].strip("[]").lower() not in self._names:
            message = "this service answers only to names of its own machine (FALLLINE_ALLOWED_HOSTS adds others)"
            return error_answer(403, "host_not_allowed", message, "Host")
        origin = headers.get("origin")
        if origin is not None and self._name(origin) not in self._names:
            return error_answer(403, "origin_not_allowed", "requests from other origins' pages are refused", "Origin")
        return None

    @staticmethod
    def _name(address: str) -> str | None:
        try:
            return urlsplit(address).hostname
        except ValueError:
            return None
