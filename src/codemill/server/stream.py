"""Answers that end when their client does: event streams, and work for an answer that comes as a whole."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from codemill.server.asgi import Receive, Scope, Send
from codemill.server.errors import ApiError
from codemill.server.log import CLIENT_GONE

T = TypeVar("T")
# Proxies would otherwise hold a stream back until it is whole.
HEADERS = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}


class EventStream(Response):
    """Server-sent events. A client that leaves ends the work at once: it is not waited for until the next event.

    close: ends what the chunks come from, however the stream ends. write_seconds: how long the client may leave what
    was sent unread.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        close: Callable[[], Awaitable[None]],
        write_seconds: float = 60.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(headers={**HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._chunks = chunks
        self._close = close
        self._write_seconds = write_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(leaving)
            await _cancel(sending)
            await self._chunks.aclose()
            await self._close()  # chunks that were never asked for have not closed anything
        if not sending.cancelled():
            sending.result()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._chunks:
            try:
                async with asyncio.timeout(self._write_seconds):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except (TimeoutError, OSError):  # nobody reads any more
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def run_unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns; it is cancelled when the client leaves, and ApiError raised, which nobody reads."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _cancel(leaving)
        await _cancel(working)
    if working.cancelled():
        raise ApiError(CLIENT_GONE, "the client left")
    return working.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: "asyncio.Future[Any]") -> None:
    """Cancel a task, unless it is done, and wait for its end; its result or error stays with it."""
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
