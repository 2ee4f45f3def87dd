"""A lean HTTP/1.1 client for measurements: one connection, one request at a time, no more than has to be parsed."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Reply:
    """An answer with a Content-Length."""

    status: int
    body: bytes


class Connection(asyncio.Protocol):
    """A connection that is kept. `ask` is for answers that come whole; `Stream` reads the others."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._reply: asyncio.Future[Reply] | None = None
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, address: tuple[str, int]) -> "Connection":
        _, connection = await asyncio.get_running_loop().create_connection(cls, *address)
        return connection

    async def ask(self, message: bytes) -> Reply:
        """Send a whole request (see `post`) and wait for its answer. Raises ConnectionError."""
        assert self._transport is not None
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return await self._reply

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(Reply(int(head[9:12]), body))

    def connection_lost(self, error: Exception | None) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionError("the server closed the connection"))


class Stream:
    """One request on a connection of its own, whose answer is read as it comes, or is not."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_whole = False

    @classmethod
    async def open(cls, address: tuple[str, int], message: bytes, limit: int = 1 << 20) -> "Stream":
        """Connect and send, without waiting for the answer. limit: bytes that are read ahead."""
        reader, writer = await asyncio.open_connection(*address, limit=limit)
        writer.write(message)
        await writer.drain()
        return cls(reader, writer)

    async def head(self) -> int:
        """Read the header -> the status."""
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1])
        pairs = (line.partition(":") for line in lines[1:] if line)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}
        return self.status

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body in the pieces in which it was sent; `is_whole` says whether it came to its end."""
        if self.headers.get("transfer-encoding") != "chunked":
            yield await self._reader.readexactly(int(self.headers.get("content-length", "0")))
            self.is_whole = True
            return
        while True:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            piece = (await self._reader.readexactly(size + 2))[:-2]
            if not size:
                self.is_whole = True
                return
            yield piece

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    def abort(self) -> None:
        """Leave at once, as a client that crashes."""
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def post(path: str, body: Any) -> bytes:
    """A whole request; `body` is made JSON unless it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


def events_of(body: bytes) -> list[Any]:
    """The data of a whole stream of server-sent events, as JSON where it is."""
    texts = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


@dataclass(frozen=True)
class Load:
    """What came of a load. seconds: of each request, in order of their ends."""

    wall_seconds: float
    client_cpu_seconds: float
    seconds: list[float]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.seconds) / self.wall_seconds

    def percentile(self, percent: float) -> float:
        ranked = sorted(self.seconds)
        return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))]


async def load(address: tuple[str, int], message: bytes, concurrency: int, num_requests: int) -> Load:
    """The same request again and again on so many connections that are kept. Raises if one is not answered with 200."""
    connections = [await Connection.open(address) for _ in range(concurrency)]
    seconds: list[float] = []
    left = num_requests

    async def work(connection: Connection) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            begin = time.perf_counter()
            reply = await connection.ask(message)
            seconds.append(time.perf_counter() - begin)
            if reply.status != 200:
                raise RuntimeError(f"status {reply.status}: {reply.body[:300]!r}")

    begin, cpu = time.perf_counter(), _cpu()
    await asyncio.gather(*[work(connection) for connection in connections])
    wall = time.perf_counter() - begin
    for connection in connections:
        connection.close()
    return Load(wall, _cpu() - cpu, seconds)


def _cpu() -> float:
    times = os.times()
    return times.user + times.system
