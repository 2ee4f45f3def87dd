"""The server of `http_server.py` in a thread, around a small application, and clients that speak badly to it."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from codemill.server.access import Access
from codemill.server.asgi import App, Receive, Scope, Send
from codemill.server.http_server import Server
from codemill.server.limits import BodyLimit
from codemill.server.listening import open_sockets
from codemill.server.request_log import RequestLog
from codemill.server.settings import ServerSettings


class Demo:
    """`/echo` answers with the body, `/big` with 64 MiB, anything else with `hello`; `/stream` sends until it is told.

    closed: how many answers ended because the client had left.
    """

    def __init__(self) -> None:
        self.is_done = threading.Event()
        self.num_streams = self.num_cut = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = (await receive()).get("body", b"")
        if scope["path"] == "/stream":
            await self._stream(receive, send)
            return
        answer = {"/echo": body, "/big": bytes(64 << 20)}.get(scope["path"], b"hello")
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for start in range(0, len(answer) or 1, 1 << 20):
            piece = answer[start : start + (1 << 20)]
            await send({"type": "http.response.body", "body": piece, "more_body": start + len(piece) < len(answer)})

    async def _stream(self, receive: Receive, send: Send) -> None:
        self.num_streams += 1
        left = asyncio.ensure_future(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not self.is_done.is_set() and not left.done():
            await send({"type": "http.response.body", "body": b"tick\n", "more_body": True})
            await asyncio.sleep(0.02)
        if left.done():
            self.num_cut += 1
            return
        left.cancel()
        await send({"type": "http.response.body", "body": b"end\n"})


class NoRegistry:
    """A registry without models, that says whether it was closed."""

    is_loading = False

    def __init__(self, on_close: Callable[[], None] = lambda: None) -> None:
        self.on_close = on_close

    async def start(self) -> None: ...

    async def close(self, timeout: float = 0.0) -> None:
        self.on_close()


class Live:
    """A server that runs, and how to reach it."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port

    @property
    def num_connections(self) -> int:
        return len(self.server.server_state.connections)

    def connect(self, timeout: float = 10.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def get(self, path: str = "/") -> bytes:
        """The answer to a whole request on a connection of its own."""
        with self.connect() as client:
            client.sendall(request("GET", path, "connection: close\r\n"))
            return read_all(client)


@contextmanager
def running(app: App, registry: Any = None, **settings: Any) -> Iterator[Live]:
    """The server around `app`, with the middlewares for bodies and the log."""
    options = ServerSettings(**settings)
    (listening,) = open_sockets("127.0.0.1", 0)
    port = listening.getsockname()[1]
    server = Server(RequestLog(Access(BodyLimit(app, options), options)), registry or NoRegistry(), options)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Live(server, port)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def request(method: str, path: str, headers: str = "", body: bytes = b"") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{headers}\r\n".encode() + body


def read_all(client: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(1 << 20):
            pieces.append(piece)
    return b"".join(pieces)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it does not come true"
        time.sleep(0.005)
