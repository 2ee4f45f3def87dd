"""Several prompts in one request: their events as those of one, the samples counted through."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from codemill.engine.admission import QueueFull
from codemill.server.events import Done, Event, Usage, Waiting
from codemill.server.generation import GenerationRequest, generate
from codemill.server.served_model import ServedModel

AT_ONCE = 16  # prompts of one request that are with the engine; the others do not take places in its queue


async def generate_all(
    model: ServedModel, requests: Sequence[GenerationRequest], *, stream: bool
) -> AsyncGenerator[Event, None]:
    """`generate` for each: sample s of prompt p has the index p * n + s. The first that fails ends all."""
    if len(requests) == 1:
        async with aclosing(generate(model, requests[0], stream=stream)) as events:
            async for event in events:
                yield event
        return
    batch = _Batch(model, requests, stream)
    try:
        async for event in batch.events():
            yield event
    finally:
        await batch.close()


@dataclass(frozen=True)
class _Ended:
    usage: Usage


class _Batch:
    def __init__(self, model: ServedModel, requests: Sequence[GenerationRequest], stream: bool) -> None:
        self._model = model
        self._stream = stream
        self._places = asyncio.Semaphore(AT_ONCE)
        self._num_running = 0
        self._has_ended = asyncio.Event()  # the next of those that run
        self._news: asyncio.Queue[Event | _Ended | BaseException] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._run(number, request)) for number, request in enumerate(requests)]

    async def events(self) -> AsyncGenerator[Event, None]:
        usages: list[Usage] = []
        while len(usages) < len(self._tasks):
            news = await self._news.get()
            if isinstance(news, BaseException):
                raise news
            if isinstance(news, _Ended):
                usages.append(news.usage)
            else:
                yield news
        yield Done(_total(usages))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, number: int, request: GenerationRequest) -> None:
        try:
            async with self._places:
                while not await self._is_accepted(number, request):
                    await self._has_ended.wait()
        except Exception as error:  # noqa: BLE001  raised again where the events are read
            self._news.put_nowait(error)

    async def _is_accepted(self, number: int, request: GenerationRequest) -> bool:
        """Generate, unless the queue is full, as it may be of this batch's own prompts: then one of them ends first."""
        self._num_running += 1
        try:
            async with aclosing(generate(self._model, request, stream=self._stream)) as events:
                async for event in events:
                    self._news.put_nowait(_numbered(event, number * request.params.n))
        except QueueFull:
            if self._num_running == 1:  # others fill it
                raise
            return False
        finally:
            self._num_running -= 1
        self._has_ended.set()
        self._has_ended = asyncio.Event()
        return True


def _numbered(event: Event, first: int) -> Event | _Ended:
    if isinstance(event, Done):
        return _Ended(event.usage)
    return event if isinstance(event, Waiting) else replace(event, index=first + event.index)


def _total(usages: Sequence[Usage]) -> Usage:
    return Usage(
        sum(usage.prompt_tokens for usage in usages),
        sum(usage.completion_tokens for usage in usages),
        sum(usage.cached_tokens for usage in usages),
        sum(usage.reasoning_tokens for usage in usages),
    )
