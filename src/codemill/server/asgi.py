"""The ASGI types, and an answer that a middleware gives instead of the application."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from codemill.server.errors import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of a header, whose name is given in lower case; of several the first."""
    for key, value in scope["headers"]:
        if key == name:
            return value  # type: ignore[no-any-return]
    return None


async def send_error(scope: Scope, send: Send, error: ApiError, more_body: bool = False) -> None:
    """Answer with an error, in the form that the path's protocol has. more_body: the end follows later."""
    body = json.dumps(error_body(scope["path"], error), ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more_body})


def error_body(path: str, error: ApiError) -> dict[str, Any]:
    """As OpenAI's clients read it, or Anthropic's for its paths."""
    if path.startswith("/v1/messages"):
        return {"type": "error", "error": {"type": error.type, "message": error.message}}
    values = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return {"error": values}
