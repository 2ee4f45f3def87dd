"""Counts of HTTP requests, by what was asked for and not by what clients wrote: their number of labels has a bound."""

import time
from collections import Counter

from codemill.engine.metrics import SECONDS, Histogram
from codemill.server.asgi import App, Message, Receive, Scope, Send
from codemill.server.log import CLIENT_GONE

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"


class HttpCounts:
    """What `HttpMetrics` counts. requests: by method, path of the route and status. seconds: by path of the route."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.seconds: dict[str, Histogram] = {}
        self.open_streams = 0

    def add(self, method: str, path: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self.requests[method if method in METHODS else OTHER, path, status] += 1
        histogram = self.seconds.get(path)
        if histogram is None:
            histogram = self.seconds[path] = Histogram(SECONDS)
        histogram.observe(seconds)


class HttpMetrics:
    """ASGI middleware that counts requests once their answers have ended."""

    def __init__(self, app: App, counts: HttpCounts) -> None:
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, counts = time.perf_counter(), self._counts
        status, is_stream = CLIENT_GONE, False

        async def send_counted(message: Message) -> None:
            nonlocal status, is_stream
            if message["type"] == "http.response.start":
                status, is_stream = message["status"], _is_stream(message)
                counts.open_streams += is_stream
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        finally:
            counts.open_streams -= is_stream
            counts.add(scope["method"], route_path(scope), status, time.perf_counter() - begin)


def route_path(scope: Scope) -> str:
    """The path of the route that answered, its parameters by name; "other" where none did."""
    return str(getattr(scope.get("route"), "path", OTHER)) or OTHER


def _is_stream(message: Message) -> bool:
    return any(name == b"content-type" and b"event-stream" in value for name, value in message.get("headers", ()))
