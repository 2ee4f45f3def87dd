"""How large a request's body may be, and how long it may take to arrive."""

import asyncio

from codemill.server.asgi import App, Message, Receive, Scope, Send, header
from codemill.server.body import IncomingBody, has_body, refuse
from codemill.server.errors import ApiError
from codemill.server.settings import ServerSettings

BODIES_AT_A_TIME = 8  # of the largest size; of smaller ones more
MOST_DIGITS = 18  # of a Content-Length


class BodyLimit:
    """ASGI middleware that reads the body before the application is called, which gets it in one piece.

    Requests are JSON, of which a part is no use; so whoever sends slowly or too much costs no more than its connection.
    A body of more than `max_body_bytes` is answered with 413, one that has not arrived after `body_seconds` with 408,
    and one for which there is no room beside others that are still arriving with 503.
    """

    def __init__(self, app: App, settings: ServerSettings) -> None:
        self._app = app
        self._max_bytes = settings.max_body_bytes
        self._seconds = settings.body_seconds
        self._room = BODIES_AT_A_TIME * settings.max_body_bytes  # for all that is arriving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not has_body(scope):
            await self._app(scope, receive, send)
            return
        body = IncomingBody(scope, receive)
        try:
            content = await self._read(scope, body)
        except ApiError as error:
            await refuse(scope, body, send, error)
            return
        if not body.has_left:
            await self._app(scope, _replay(content, receive), send)

    async def _read(self, scope: Scope, body: IncomingBody) -> bytes:
        """All that arrives. Raises ApiError."""
        length = header(scope, b"content-length")
        if length is not None and (len(length) > MOST_DIGITS or int(length) > self._max_bytes):
            raise self._too_large()
        try:
            async with asyncio.timeout(self._seconds):
                return await self._read_all(body)
        except TimeoutError:
            message = f"the request's body has not arrived within {self._seconds:g} s: send it faster, or in parts"
            raise ApiError(408, message, code="request_timeout") from None

    async def _read_all(self, body: IncomingBody) -> bytes:
        pieces, size = [], 0
        try:
            while not body.is_over:
                pieces.append(await body.next())
                size += len(pieces[-1])
                self._room -= len(pieces[-1])
                if size > self._max_bytes:
                    raise self._too_large()
                if self._room < 0:
                    message = "too many large requests arrive at the same time: send it again later"
                    raise ApiError(503, message, "unavailable", headers={"Retry-After": "5"})
            return b"".join(pieces)
        finally:
            self._room += size

    def _too_large(self) -> ApiError:
        message = f"the request's body is larger than {self._max_bytes} bytes: send less, or raise --max-body-mib"
        return ApiError(413, message, code="request_too_large")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first, and then what else comes."""
    message: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def replay() -> Message:
        nonlocal message
        first, message = message, None
        return first if first is not None else await receive()

    return replay
