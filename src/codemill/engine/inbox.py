"""The way of updates from an engine's thread to the coroutines that wait for them. No torch here."""

import asyncio
import math
from collections import defaultdict, deque
from collections.abc import Iterable

from codemill.engine.outputs import RequestOutput
from codemill.engine.updates import Progress, StreamUpdate
from codemill.errors import CodemillError

Letter = tuple["Inbox", StreamUpdate | CodemillError]


class Inbox:
    """What has arrived for one request. It belongs to the event loop in which it was made, which alone may read it."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.event_loop = asyncio.get_running_loop()
        self.progress: Progress | None = None  # the latest
        self.is_waiting = True
        self.is_finished = self.is_aborted = False
        self._arrived: deque[StreamUpdate | CodemillError] = deque()
        self._reader: asyncio.Future[None] | None = None

    def put(self, news: StreamUpdate | CodemillError) -> None:
        """Take news in, on the event loop."""
        if isinstance(news, CodemillError) or news.output is not None:
            self.is_finished = True
        elif news.progress is not None:
            self.progress = news.progress
        self.is_waiting = not self.is_finished and _is_waiting(news)
        self._arrived.append(news)
        self._wake_reader()

    @property
    def is_read(self) -> bool:
        """Whether nothing more can come."""
        return self.is_finished and not self._arrived

    async def get(self, keep_alive: float) -> StreamUpdate:
        """The next update; after `keep_alive` seconds without one, the last progress again.

        Raises the error that ended the request.
        """
        if not self._arrived:
            await self._wait(keep_alive)
        news = self._arrived.popleft() if self._arrived else StreamUpdate(progress=self.progress)
        if isinstance(news, CodemillError):
            raise news
        return news

    async def output(self) -> RequestOutput:
        """The whole result. Raises the error that ended the request."""
        while True:
            update = await self.get(math.inf)
            if update.output is not None:
                return update.output

    # Not asyncio.wait_for: it makes a task, which for every token costs more than all else here.
    async def _wait(self, timeout: float) -> None:
        self._reader = self.event_loop.create_future()
        timer = self.event_loop.call_later(timeout, self._wake_reader)
        try:
            await self._reader
        finally:
            timer.cancel()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


def deliver(letters: Iterable[Letter]) -> list[Inbox]:
    """Hand over, from any thread, with one call for each event loop -> the inboxes whose event loop is closed."""
    by_event_loop: dict[asyncio.AbstractEventLoop, list[Letter]] = defaultdict(list)
    for letter in letters:
        by_event_loop[letter[0].event_loop].append(letter)
    unreachable = []
    for event_loop, part in by_event_loop.items():
        try:
            event_loop.call_soon_threadsafe(_distribute, part)
        except RuntimeError:  # it is closed
            unreachable += [inbox for inbox, _ in part]
    return unreachable


def _distribute(letters: list[Letter]) -> None:
    for inbox, news in letters:
        inbox.put(news)


def _is_waiting(news: StreamUpdate | CodemillError) -> bool:
    if isinstance(news, CodemillError) or news.progress is None:
        return False
    return news.progress.num_ahead is not None
