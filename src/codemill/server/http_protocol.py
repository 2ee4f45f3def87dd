"""uvicorn's HTTP protocol, guarded against clients that hold a connection without using it.

uvicorn closes a connection that is idle between two requests; it waits for ever for the rest of a header, or for a
client to read its answer, and httptools takes a header of any size.
"""

import asyncio
import re
from asyncio.events import TimerHandle
from typing import Any

from codemill.server.settings import ServerSettings

UPGRADE = re.compile(rb"\r\nupgrade:(?=[ \t]*h2c[ \t]*\r\n)", re.IGNORECASE)


def guarded_protocol(settings: ServerSettings) -> type[asyncio.Protocol]:
    """The protocol class for `uvicorn.Config(http=...)`, on httptools where that is installed."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol  # type: ignore[assignment]
    return type("GuardedProtocol", (Guard, Protocol), {"settings": settings})


def without_upgrade(data: bytes) -> bytes:
    """The begin of a request that does not ask for HTTP/2: httptools would take its body for that of another protocol.

    Java's HttpClient asks for it with every request.
    """
    blank = data.find(b"\r\n\r\n")
    end = len(data) if blank < 0 else blank + 2
    if data.find(b"h2c", 0, end) < 0:
        return data
    return UPGRADE.sub(b"\r\nx-upgrade:", data[:end]) + data[end:]


class Guard:
    """Goes before one of uvicorn's protocols in a class's bases."""

    settings: ServerSettings
    # Of the protocol:
    cycle: Any
    connections: set[Any]
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_timer: TimerHandle | None = None
        self._write_timer: TimerHandle | None = None
        self._num_head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        if len(self.connections) > self.settings.max_connections:
            self._refuse(503, "Service Unavailable", f"the server has {self.settings.max_connections} connections")
        else:
            self._start_head_timer()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_write_timer()
        super().connection_lost(error)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        if cycle is not None and cycle.more_body and not cycle.response_complete:  # the body of a request
            super().data_received(data)  # type: ignore[misc]
            return
        if self._num_head_bytes + len(data) > self.settings.max_header_bytes and not self._has_short_head(data):
            self._refuse(431, "Request Header Fields Too Large", "the request's header is too large")
            return
        super().data_received(without_upgrade(data))  # type: ignore[misc]
        if self.cycle is not cycle:  # the header is complete
            self._num_head_bytes = 0
            self._stop_head_timer()
        else:
            self._num_head_bytes += len(data)
            self._start_head_timer()

    def pause_writing(self) -> None:
        super().pause_writing()  # type: ignore[misc]
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.settings.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()  # type: ignore[misc]
        self._stop_write_timer()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _has_short_head(self, data: bytes) -> bool:
        end = data.find(b"\r\n\r\n")
        return end >= 0 and self._num_head_bytes + end <= self.settings.max_header_bytes

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.settings.header_seconds, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._is_answering:  # it has sent a part of its next request already
            self._start_head_timer()
        elif self._num_head_bytes:
            self._refuse(408, "Request Timeout", "the request's header has not arrived in time")
        else:  # a connection that a browser opened just in case
            self.transport.close()

    def _refuse(self, status: int, phrase: str, message: str) -> None:
        """Answer in the protocol's place and close; in the midst of another answer only close."""
        if self._is_answering:
            self.transport.abort()
        if self.transport.is_closing():
            return
        body = f'{{"error": {{"message": "{message}", "type": "invalid_request_error", "code": null}}}}'
        retry = "retry-after: 1\r\n" if status == 503 else ""
        head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}{retry}connection: close\r\n\r\n{body}".encode())
        self.transport.close()
