"""A request's body as it arrives, and answers to requests whose body nobody wants."""

import asyncio

from codemill.server.asgi import Receive, Scope, Send, send_error
from codemill.server.errors import ApiError
from codemill.server.log import record_of

LINGER_SECONDS = 2.0


class IncomingBody:
    """The body of a request, piece by piece. is_over: nothing more comes of it. has_left: nor of the client."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.is_over = not has_body(scope)
        self.has_left = False
        self._receive = receive

    async def next(self) -> bytes:
        """The next piece; empty when the client has left."""
        message = await self._receive()
        self.has_left = message["type"] != "http.request"
        self.is_over = self.has_left or not message.get("more_body", False)
        return b"" if self.has_left else message.get("body", b"")

    async def discard(self, seconds: float) -> None:
        """Take in what is still under way, for so long at most."""
        try:
            async with asyncio.timeout(seconds):
                while not self.is_over:
                    await self.next()
        except TimeoutError:
            pass


def has_body(scope: Scope) -> bool:
    """Whether a request's header announces a body."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            return True
    return False


async def refuse(scope: Scope, body: IncomingBody, send: Send, error: ApiError) -> None:
    """Answer a request whose body was not read to its end, and take the rest in before the connection is closed.

    Closing it at once would reset it, and the client, still sending, would lose the answer.
    """
    record_of(scope).error = error.code
    if body.is_over:
        await send_error(scope, send, error)
        return
    error.headers["connection"] = "close"
    await send_error(scope, send, error, more_body=True)
    await body.discard(LINGER_SECONDS)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
