"""A model whose replies are written down beforehand, for tests."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from codemill.agent.events import Listener, TextDelta
from codemill.agent.model import Message, Reply, Usage
from codemill.agent.stops import Interrupted
from codemill.chat.tool_parser import ToolCallParser
from codemill.errors import CodemillError

Script = Iterable[str | Reply] | Callable[[Sequence[Message]], str | Reply]


class ScriptedModel:
    """Gives the replies of a script one after the other, or what a function makes of the conversation.

    A text is read as the model's own: calls in it are written as Qwen3-Coder writes them.
    """

    name = "scripted"

    def __init__(self, script: Script, context_length: int | None = None) -> None:
        self.context_length = context_length
        self.seen: list[list[Message]] = []  # the conversations that it was asked about
        self._replies: Iterator[str | Reply] | None = None if callable(script) else iter(script)
        self._function = script if callable(script) else None

    def reply(
        self, messages: Sequence[Message], tools: Sequence[Message], listen: Listener, cancel: threading.Event
    ) -> Reply:
        self.seen.append(list(messages))
        said = self._next(messages)
        if cancel.is_set():
            raise Interrupted("stopped")
        reply = said if isinstance(said, Reply) else read_reply(said, tools)
        if reply.content:
            listen(TextDelta(reply.content))
        return reply

    def _next(self, messages: Sequence[Message]) -> str | Reply:
        if self._function is not None:
            return self._function(messages)
        assert self._replies is not None
        try:
            return next(self._replies)
        except StopIteration:
            raise CodemillError("the script has no reply left") from None


def read_reply(text: str, tools: Sequence[Message], usage: Usage | None = None) -> Reply:
    """A reply out of what a model wrote."""
    parsed = ToolCallParser(tools).parse(text)
    problems = tuple(problem.message for problem in parsed.errors)
    return Reply(parsed.content, parsed.tool_calls, problems, usage=usage or Usage())
