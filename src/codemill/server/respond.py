"""From a generation request to the answer on its way: whole, or as a stream that a protocol's writer writes down."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from fastapi import Request

from codemill.engine.updates import Progress
from codemill.errors import CodemillError
from codemill.server.answer import Answer, collect
from codemill.server.batch import generate_all
from codemill.server.errors import ApiError, api_error_of
from codemill.server.events import Done, Event, Finish, Waiting
from codemill.server.generation import GenerationRequest
from codemill.server.log import RequestRecord, log, record_of
from codemill.server.registry import Registry
from codemill.server.served_model import ServedModel
from codemill.server.settings import ServerSettings
from codemill.server.stream import EventStream, run_unless_disconnected

T = TypeVar("T")
# A model that takes longer to load must not keep its clients without an answer: they would ask again.
OPENING_SECONDS = 5.0
# One request, or several, whose samples are counted through.
Generation = GenerationRequest | Sequence[GenerationRequest]


@dataclass(frozen=True)
class Server:
    """What all requests share."""

    registry: Registry
    settings: ServerSettings


class Writer(Protocol):
    """Writes a stream down as its protocol wants it. What it returns may be empty."""

    def start(self) -> bytes:
        """What comes before anything is known of the answer."""

    def write(self, event: Event) -> bytes:
        """An event, which is never `Waiting`; after `Done` the stream ends."""

    def wait(self, progress: Progress | None) -> bytes:
        """What keeps the connection open while there is nothing to say."""

    def fail(self, error: ApiError) -> bytes:
        """What went wrong in the middle, and the end of the stream."""


async def respond_whole(request: Request, name: str | None, generation: Generation) -> tuple[Answer, ServedModel]:
    """The whole answer, and the model that gave it. Raises what is wrong with the request."""
    return await respond_with(request, name, generation, collect)


async def respond_with(
    request: Request,
    name: str | None,
    generation: Generation,
    read: Callable[[AsyncIterator[Event]], Awaitable[T]],
) -> tuple[T, ServedModel]:
    """What `read` makes of the answer's events, and the model that gave them. Raises what is wrong with the request."""
    return await run_unless_disconnected(request, _read(request, name, generation, read))


async def respond_stream(
    request: Request,
    name: str | None,
    generation: Generation,
    make_writer: Callable[[str], Writer],
    every_progress: bool = False,
) -> EventStream:
    """The answer as a stream. Raises what is wrong with the request, as far as that is known before the answer begins.

    make_writer: given the name of the model. every_progress: the client wants to see all progress that is made.
    """
    settings: ServerSettings = request.app.state.server.settings
    source = _Source(request, name, generation)
    try:
        await source.open(OPENING_SECONDS)
    except BaseException:
        await source.close()
        raise
    interval = 0.0 if every_progress else settings.heartbeat_seconds
    chunks = _written(source, make_writer(source.model_name), interval, settings.heartbeat_seconds)
    return EventStream(chunks, source.close, settings.write_seconds)


class _Source:
    """The events of one request, and the model that they come from, which stays loaded meanwhile."""

    def __init__(self, request: Request, name: str | None, generation: Generation) -> None:
        self._events = _leased_events(request, name, generation)
        self._opening = asyncio.ensure_future(self._open())
        self.model_name = name or ""
        self.record = record_of(request.scope)

    async def _open(self) -> Event:
        model = await anext(self._events)
        assert isinstance(model, ServedModel)
        self.model_name = model.name
        return await self._next()

    async def _next(self) -> Event:
        event = await anext(self._events)
        assert not isinstance(event, ServedModel)
        return event

    async def open(self, seconds: float) -> bool:
        """Wait so long for the request to be accepted -> whether it was. Raises what is wrong with it."""
        await asyncio.wait({self._opening}, timeout=seconds)
        if not self._opening.done():
            return False
        self._opening.result()
        return True

    async def events(self, interval: float) -> AsyncGenerator[Event, None]:
        """All events; before the first one `Waiting` again and again, `interval` seconds apart."""
        while not await self.open(interval):
            yield Waiting()
        yield self._opening.result()
        with suppress(StopAsyncIteration):
            while True:
                yield await self._next()

    async def close(self) -> None:
        """End the work, as far as it is not done."""
        self._opening.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await self._opening
        await self._events.aclose()


async def _written(source: _Source, writer: Writer, interval: float, heartbeat: float) -> AsyncGenerator[bytes, None]:
    """The stream's bytes. interval: seconds without any after which one that waits is told so."""
    try:
        yield writer.start()
        last = time.monotonic()
        async with aclosing(source.events(heartbeat)) as events:
            async for event in events:
                if not isinstance(event, Waiting):
                    chunk = writer.write(event)
                elif time.monotonic() - last >= (interval if event.progress else heartbeat):
                    chunk = writer.wait(event.progress)
                else:
                    continue
                if chunk:
                    yield chunk
                    last = time.monotonic()
    except Exception as error:  # noqa: BLE001  the status is sent: all that is left is to say so in the stream
        yield writer.fail(_logged(error, source.record))


def _logged(error: Exception, record: RequestRecord) -> ApiError:
    if not isinstance(error, ApiError | CodemillError):
        log.error("a request failed", exc_info=error)
    told = api_error_of(error)
    record.error = told.code or told.type
    return told


async def _read(
    request: Request,
    name: str | None,
    generation: Generation,
    read: Callable[[AsyncIterator[Event]], Awaitable[T]],
) -> tuple[T, ServedModel]:
    async with aclosing(_leased_events(request, name, generation, stream=False)) as events:
        model = await anext(events)
        assert isinstance(model, ServedModel)
        return await read(events), model  # type: ignore[arg-type]


async def _leased_events(
    request: Request, name: str | None, generation: Generation, *, stream: bool = True
) -> AsyncGenerator[Event | ServedModel, None]:
    """First the model, once it is loaded, then the events. What they say of the request goes into its record."""
    server: Server = request.app.state.server
    record, begin = record_of(request.scope), time.perf_counter()
    requests = [generation] if isinstance(generation, GenerationRequest) else generation
    completed = [_completed(each, server.settings) for each in requests]
    async with server.registry.lease(name) as model:
        record.model = model.name
        yield model
        async with aclosing(generate_all(model, completed, stream=stream)) as events:
            async for event in events:
                _note(record, event, begin)
                yield event


def _completed(generation: GenerationRequest, settings: ServerSettings) -> GenerationRequest:
    """With an id of its own, by which it can be ended, and no more time than the server grants."""
    limits = [each for each in (generation.deadline, settings.max_request_seconds) if each is not None]
    return replace(generation, request_id=os.urandom(12).hex(), deadline=min(limits, default=None))


def _note(record: RequestRecord, event: Event, begin: float) -> None:
    if isinstance(event, Done):
        usage = event.usage
        record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        record.cached_tokens = usage.cached_tokens
    elif isinstance(event, Finish):
        record.finish_reason = event.reason
    elif record.ttft_seconds is None and not isinstance(event, Waiting):
        record.ttft_seconds = time.perf_counter() - begin
