"""What the OpenAPI document says of answers that no pydantic model describes."""

from typing import Any

ERROR_SCHEMA = {"type": "object", "properties": {"error": {"type": "object"}}, "required": ["error"]}


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": ERROR_SCHEMA}}}


ERRORS: dict[int | str, dict[str, Any]] = {
    400: _error("The request is wrong; error.message says what."),
    401: _error("An API key is needed."),
    403: _error("A web page of another origin."),
    404: _error("No such model."),
    408: _error("The body took too long."),
    413: _error("The body is too large."),
    429: _error("Too many requests wait; Retry-After says when to try again."),
    500: _error("The model or the server failed."),
    503: _error("The server is not ready."),
}
JSON_OBJECT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer.", "content": {"application/json": {"schema": {"type": "object"}}}},
    **ERRORS,
}
STREAMING: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    200: {
        "description": "The answer; with `stream` server-sent events.",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {},
        },
    },
}
