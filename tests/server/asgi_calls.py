"""ASGI applications called directly: what middlewares let through, and what they answer."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from codemill.server.asgi import App, Message, Receive, Scope, Send


@dataclass
class Answer:
    """What a call was answered with."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.body)["error"]  # type: ignore[no-any-return]


class Echo:
    """Answers with the body it received, and remembers the scopes that reached it."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        message = await receive()
        assert not message.get("more_body")
        headers = [(b"content-type", b"application/octet-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": message.get("body", b"")})


def make_scope(method: str = "POST", path: str = "/v1/chat/completions", headers: Mapping[str, str] = {}) -> Scope:
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": encoded, "client": ("10.0.0.9", 4321)}


async def acall(app: App, scope: Scope, pieces: Iterable[bytes] = (b"",), gap: float = 0.0) -> Answer:
    """Call with a body in pieces, `gap` seconds apart."""
    answer, left = Answer(), list(pieces)

    async def receive() -> Message:
        if gap:
            await asyncio.sleep(gap)
        if not left:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    await app(scope, receive, send)
    return answer


def call(app: App, scope: Scope, pieces: Iterable[bytes] = (b"",), gap: float = 0.0) -> Answer:
    return asyncio.run(acall(app, scope, pieces, gap))
