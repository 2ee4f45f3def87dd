"""The output of a response: its items in the order in which they came."""

from collections.abc import AsyncIterator

from codemill.server.events import (
    ArgumentsDelta,
    CallEnd,
    CallStart,
    Done,
    Event,
    Finish,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    Usage,
)
from codemill.server.protocols.responses_items import CustomCall, FunctionCall, Item, Json, Message, Reasoning
from codemill.server.protocols.responses_tools import OfferedTools


class Output:
    """Puts the items together and tells what happens to them. encodes_reasoning: see `Reasoning`."""

    def __init__(self, tools: OfferedTools, encodes_reasoning: bool) -> None:
        self.reason: FinishReason = "stop"
        self.usage = Usage()
        self._tools = tools
        self._encodes_reasoning = encodes_reasoning
        self._items: list[Item] = []
        self._current: Item | None = None
        self._early: tuple[TokenLogprob, ...] = ()  # log-probabilities of tokens whose text is not there yet

    def objects(self) -> list[Json]:
        """The items as they stand."""
        return [item.object() for item in self._items]

    def add(self, event: Event) -> list[Json]:
        """What an event means, as the protocol's events without their numbers."""
        if isinstance(event, TextDelta):
            return self._add_text(event)
        if isinstance(event, ReasoningDelta):
            return self._add_reasoning(event.text)
        if isinstance(event, CallStart):
            return self._open_call(event)
        if isinstance(event, ArgumentsDelta):
            assert isinstance(self._current, FunctionCall | CustomCall)
            return self._current.add(event.text)
        if isinstance(event, CallEnd):
            assert isinstance(self._current, FunctionCall | CustomCall)
            self._current.tool_call = event.tool_call
        elif isinstance(event, Finish):
            return self._finish(event.reason)
        elif isinstance(event, Done):
            self.usage = event.usage
        return []

    def _add_text(self, event: TextDelta) -> list[Json]:
        message = self._current
        if not event.text and not isinstance(message, Message):
            self._early = event.logprobs if message is None else ()
            return []
        opened = []
        if not isinstance(message, Message):
            message = Message(self._place)
            opened = self._open(message)
        early, self._early = self._early, ()
        return [*opened, *message.add(event.text, (*early, *event.logprobs))]

    def _add_reasoning(self, text: str) -> list[Json]:
        reasoning, opened = self._current, []
        if not isinstance(reasoning, Reasoning):
            reasoning = Reasoning(self._place, self._encodes_reasoning)
            opened = self._open(reasoning)
        self._early = ()
        return [*opened, *reasoning.add(text)]

    def _open_call(self, event: CallStart) -> list[Json]:
        origin = self._tools.origin(event.name)
        kind = CustomCall if origin.is_custom else FunctionCall
        return self._open(kind(self._place, event.id, origin))

    @property
    def _place(self) -> int:
        return len(self._items)

    def _open(self, item: Item) -> list[Json]:
        closed = self._close("completed")
        self._items.append(item)
        self._current = item
        return [*closed, *item.open()]

    def _close(self, status: str) -> list[Json]:
        current, self._current = self._current, None
        return [] if current is None else current.close(status)

    def _finish(self, reason: FinishReason) -> list[Json]:
        self.reason = reason
        if reason == "length":
            events = self._close("incomplete")
            # A call that was cut off must not be carried out: clients do that once they are told that it is done.
            is_call = bool(self._items) and isinstance(self._items[-1], FunctionCall | CustomCall)
            return [] if is_call else events
        events = self._close("completed")
        if all(isinstance(item, Reasoning) for item in self._items):
            # Clients take an answer without message and calls for one that is not the last.
            events += [*self._open(Message(self._place)), *self._close("completed")]
        return events


async def read_output(output: Output, events: AsyncIterator[Event]) -> None:
    """Take in a whole answer."""
    async for event in events:
        output.add(event)
