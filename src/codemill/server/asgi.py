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
            return value
    return None


async def send_error(scope: Scope, send: Send, error: ApiError, more_body: bool = False) -> None:
    """Answer with an error, in the form that the path's protocol has. more_body: the end follows later."""
    body = json.dumps(error.body(scope["path"]), ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more_body})
