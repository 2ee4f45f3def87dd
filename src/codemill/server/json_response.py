"""JSON on its way out."""

from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from codemill.server.errors import ApiError


def json_bytes(value: Any) -> bytes:
    """A JSON value as UTF-8."""
    return to_json(value)


def json_response(value: Any, status: int = 200) -> Response:
    """An answer that is a JSON value."""
    return Response(to_json(value), status, media_type="application/json")


def error_response(error: ApiError, path: str) -> Response:
    """An answer that says what is wrong, in the form of the path's protocol."""
    return Response(to_json(error.body(path)), error.status, error.headers, media_type="application/json")


def sse(data: bytes, event: str | None = None) -> bytes:
    """A server-sent event; `data` is one line."""
    name = b"" if event is None else b"event: " + event.encode() + b"\n"
    return name + b"data: " + data + b"\n\n"
