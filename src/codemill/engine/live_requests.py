"""All requests that an engine's thread works on, and the news of them that nobody has heard yet. No torch here."""

import time
from collections.abc import Iterable

from codemill.engine.live_request import LiveRequest
from codemill.engine.sequence import Sequence
from codemill.engine.updates import Event
from codemill.errors import CodemillError

PROGRESS_SECONDS = 1.0  # between reports of how far a prompt is


class LiveRequests:
    """Requests by their ids and by their sequences."""

    def __init__(self) -> None:
        self._by_id: dict[str, LiveRequest] = {}
        self._owners: dict[Sequence, LiveRequest] = {}
        self._not_started: dict[str, LiveRequest] = {}
        self._events: list[Event] = []
        self._next_report = 0.0

    def __bool__(self) -> bool:
        return bool(self._by_id)

    def add(self, live: LiveRequest) -> None:
        """A request begins to wait."""
        self._by_id[live.request_id] = self._not_started[live.request_id] = live
        self._owners.update(dict.fromkeys(live.request.sequences, live))

    def all(self) -> list[LiveRequest]:
        return list(self._by_id.values())

    def find(self, request_id: str) -> LiveRequest | None:
        """The request, unless it has ended."""
        return self._by_id.get(request_id)

    def owner(self, sequence: Sequence) -> LiveRequest | None:
        """The request of a sequence, unless it has ended, or was never one of these."""
        return self._owners.get(sequence)

    def overdue(self) -> list[LiveRequest]:
        """Those whose deadline has passed."""
        now = time.perf_counter()
        return [live for live in self._by_id.values() if live.deadline is not None and now >= live.deadline]

    def seconds_left(self) -> float | None:
        """Until the next deadline; None where there is none."""
        deadlines = [live.deadline for live in self._by_id.values() if live.deadline is not None]
        return max(0.0, min(deadlines) - time.perf_counter()) if deadlines else None

    def tell(self, live: LiveRequest, sequence: Sequence) -> None:
        """A sequence has new tokens, or has ended; a request ends with the last of its sequences."""
        update = live.update(sequence)
        if update is not None:
            self._events.append((live.request_id, update))
        if live.is_reported:
            self._forget(live)

    def tell_error(self, live: LiveRequest, error: CodemillError) -> None:
        """A request has failed."""
        self._events.append((live.request_id, error))
        self._forget(live)

    def tell_progress(self, waiting: list[Sequence]) -> None:
        """Which prompts have begun since the last call and, once a second, how far all are; `waiting` is the queue."""
        started = [live for live in self._not_started.values() if live.has_started]
        for live in started:
            del self._not_started[live.request_id]
        now = time.perf_counter()
        if now >= self._next_report:
            self._next_report = now + PROGRESS_SECONDS
            self._tell_progress(self._by_id.values(), waiting)
        elif started:
            self._tell_progress(started, waiting)

    def take_events(self) -> list[Event]:
        """The news since the last call."""
        events, self._events = self._events, []
        return events

    def _tell_progress(self, requests: Iterable[LiveRequest], waiting: list[Sequence]) -> None:
        positions = {sequence: position for position, sequence in enumerate(waiting)}
        for live in requests:
            update = None if live.has_tokens else live.progress_update(positions.get(live.request.sequences[0]))
            if update is not None:
                self._events.append((live.request_id, update))

    def _forget(self, live: LiveRequest) -> None:
        del self._by_id[live.request_id]
        self._not_started.pop(live.request_id, None)
        for sequence in live.request.sequences:
            del self._owners[sequence]
