"""How large a request's body may be, and how long it may take to arrive."""

import asyncio

from codemill.server.asgi import App, Message, Receive, Scope, Send, header, send_error
from codemill.server.errors import ApiError
from codemill.server.settings import ServerSettings

LINGER_SECONDS = 2.0
MOST_DIGITS = 18  # of a Content-Length


class BodyRefused(Exception):
    """A body that is not read to its end, and whether it has arrived all the same."""

    def __init__(self, error: ApiError, has_arrived: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.has_arrived = has_arrived


class BodyLimit:
    """ASGI middleware that reads the body before the application is called, which gets it in one piece.

    Requests are JSON, of which a part is no use; so whoever sends slowly or too much costs no more than its connection.
    A body of more than `max_body_bytes` is answered with 413, one that has not arrived after `body_seconds` with 408.
    """

    def __init__(self, app: App, settings: ServerSettings) -> None:
        self._app = app
        self._max_bytes = settings.max_body_bytes
        self._seconds = settings.body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not has_body(scope):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except BodyRefused as refused:
            await _refuse(scope, receive, send, refused)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None if the client has left. Raises BodyRefused."""
        length = header(scope, b"content-length")
        if length is not None and (len(length) > MOST_DIGITS or int(length) > self._max_bytes):
            raise self._too_large()
        try:
            async with asyncio.timeout(self._seconds):
                return await self._read_all(receive)
        except TimeoutError:
            message = f"the request's body has not arrived within {self._seconds:g} s: send it faster, or in parts"
            raise BodyRefused(ApiError(408, message, code="request_timeout")) from None

    async def _read_all(self, receive: Receive) -> bytes | None:
        pieces, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            piece = message.get("body", b"")
            size += len(piece)
            is_last = not message.get("more_body", False)
            if size > self._max_bytes:
                raise self._too_large(is_last)
            pieces.append(piece)
            if is_last:
                return b"".join(pieces)

    def _too_large(self, has_arrived: bool = False) -> "BodyRefused":
        message = f"the request's body is larger than {self._max_bytes} bytes: send less, or raise --max-body-mib"
        return BodyRefused(ApiError(413, message, code="request_too_large"), has_arrived)


def has_body(scope: Scope) -> bool:
    """Whether a request's header announces a body."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            return True
    return False


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first, and then what else comes."""
    message: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def replay() -> Message:
        nonlocal message
        first, message = message, None
        return first if first is not None else await receive()

    return replay


async def _refuse(scope: Scope, receive: Receive, send: Send, refused: BodyRefused) -> None:
    """Answer, then take what is still under way before the connection is closed.

    Closing it at once would reset it, and the client, still sending, would lose the answer.
    """
    error = refused.error
    error.headers["connection"] = "close"
    await send_error(scope, send, error, more_body=not refused.has_arrived)
    if refused.has_arrived:
        return
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})
