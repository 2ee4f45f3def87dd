"""The middleware that logs requests."""

import logging
import os
import re
import time

from codemill.server.asgi import App, Message, Receive, Scope, Send, header
from codemill.server.log import CLIENT_GONE, RECORD, RequestRecord, log

QUIET_PATHS = ("/health", "/metrics", "/favicon.ico", "/static/")  # asked for all the time, and of no interest
ID_HEADERS = (b"x-request-id", b"request-id")  # OpenAI's and Anthropic's clients read one each
MOST_LOGGED = 1 << 18  # bytes of a body
_REQUEST_ID = re.compile(rb"[\w.:-]{1,64}")


class RequestLog:
    """ASGI middleware that writes a line when a request has ended, and gives each answer an `x-request-id`.

    log_prompts: the line has what the client sent, and what it was answered.
    """

    def __init__(self, app: App, log_prompts: bool = False) -> None:
        self._app = app
        self._log_prompts = log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(scope, receive, send, self._log_prompts)
        try:
            await self._app(scope, request.receive if self._log_prompts else receive, request.send)
        except Exception as error:
            request.fail(error)
            raise
        finally:
            request.end()


class _Request:
    """A request on its way, as far as the log is told."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, notes_bodies: bool) -> None:
        self._begin = time.perf_counter()
        self._receive, self._send = receive, send
        self._id = _request_id(scope)
        self._is_done = False
        self._bodies = (bytearray(), bytearray()) if notes_bodies else None
        self._record = RequestRecord(scope["method"], scope["path"], client=_client(scope), id=self._id.decode())
        scope[RECORD] = self._record

    async def receive(self) -> Message:
        message = await self._receive()
        if self._bodies is not None:
            _append(self._bodies[0], message)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._record.status = message["status"]
            ids = [(name, self._id) for name in ID_HEADERS]
            message = {**message, "headers": [*message.get("headers", []), *ids]}
        elif not message.get("more_body", False):
            self._is_done = True
        if self._bodies is not None:
            _append(self._bodies[1], message)
        await self._send(message)

    def fail(self, error: Exception) -> None:
        self._record.status = self._record.status or 500
        self._record.error = type(error).__name__
        self._is_done = True

    def end(self) -> None:
        record = self._record
        record.status = record.status or CLIENT_GONE
        record.is_cut = (not self._is_done and record.status != CLIENT_GONE) or None
        record.seconds = time.perf_counter() - self._begin
        if self._bodies is not None:
            record.body, record.answer = (body.decode("utf-8", "replace") for body in self._bodies)
        if record.status >= 400 or not record.path.startswith(QUIET_PATHS):
            _write(record)


def _append(data: bytearray, message: Message) -> None:
    data += message.get("body", b"")[: MOST_LOGGED - len(data)]


def _write(record: RequestRecord) -> None:
    """As `log.info` would, without the search for its caller, which costs as much as all else."""
    if log.isEnabledFor(logging.INFO):
        extra = {"record": record}
        log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, "request", (), None, extra=extra))


def _request_id(scope: Scope) -> bytes:
    """The client's own, so that it finds its request in the log, or a new one."""
    given = header(scope, b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return b"req-" + os.urandom(8).hex().encode()


def _client(scope: Scope) -> str | None:
    """Of one that a proxy speaks for only the address is known."""
    client = scope.get("client")
    if not client:
        return None
    return f"{client[0]}:{client[1]}" if client[1] else str(client[0])
