"""Makes a conversation shorter before it is too long for the model, and keeps what must not be lost."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from codemill.agent.events import Listener, Notice
from codemill.agent.model import Message, Model
from codemill.agent.output import cut_middle
from codemill.agent.session import Session
from codemill.agent.stops import ContextTooLong

FULL = 0.8  # of the context, from which on the conversation is made shorter
RECENT = 0.2  # of the context, which the latest messages keep
CHARACTERS_PER_TOKEN = 3.0  # an estimate from below
UNKNOWN_CONTEXT = 32_768  # assumed where nobody says how long the context is
MAX_REQUEST = 4000  # characters of a user's message that are kept as they are
MAX_OLD_RESULT = 400  # characters of an old result, where a summary cannot be made

INSTRUCTION = """Stop here. The conversation is about to be cut, and all that remains of it is what you write now. \
Write, in at most 600 words and without calling a tool:
1. What the user wants, with every constraint.
2. What was decided, and why.
3. What was done: files, functions, commands and what they showed.
4. What failed, so that it is not tried again.
5. What comes next."""
SUMMARY = (
    "[The conversation before this was summarised.]\n\n"
    "## What the user said\n{requests}\n\n## Summary\n{summary}{todos}"
)


class Summarizer:
    """Replaces all but the latest messages by a summary that the model writes.

    The user's own words and the open todos are kept as they are, so that no summary can lose them. todos: gives the
    list as text, empty where there is none.
    """

    def __init__(self, todos: Callable[[], str] = lambda: "") -> None:
        self._todos = todos

    def compact_if_needed(
        self, session: Session, model: Model, listen: Listener, cancel: threading.Event, tools: Sequence[Message] = ()
    ) -> None:
        context = model.context_length or UNKNOWN_CONTEXT
        if conversation_tokens(session) > FULL * context and len(session.messages) > 4:
            listen(Notice("the conversation is almost as long as the context: it is being summarised"))
            self.compact(session, model, listen, cancel, tools)

    def compact(
        self, session: Session, model: Model, listen: Listener, cancel: threading.Event, tools: Sequence[Message] = ()
    ) -> None:
        head, old, recent = _split(session.messages, (model.context_length or UNKNOWN_CONTEXT) * RECENT)
        if not old:
            raise ContextTooLong("the conversation does not fit the model's context, and nothing of it can be left out")
        summary = self._summary(session, model, listen, cancel)
        session.replace([*head, self._message(old, summary), *recent], "summary")

    def _summary(self, session: Session, model: Model, listen: Listener, cancel: threading.Event) -> str:
        """What the model writes; where not even that fits, it sees old results in short."""
        messages = [*session.messages, {"role": "user", "content": INSTRUCTION}]
        for shown in (messages, _with_short_results(messages)):
            try:
                reply = model.reply(shown, (), lambda event: None, cancel)
            except ContextTooLong:
                continue
            if reply.content.strip():
                return reply.content.strip()
        return _outline(session.messages)

    def _message(self, old: Sequence[Message], summary: str) -> dict[str, Any]:
        requests = [_request(message["content"]) for message in old if message["role"] == "user"]
        todos = self._todos()
        text = SUMMARY.format(
            requests="\n".join(f"- {request}" for request in requests) or "- (see below)",
            summary=summary,
            todos=f"\n\n## Todos\n{todos}" if todos else "",
        )
        return {"role": "user", "content": text}


def conversation_tokens(session: Session) -> int:
    """About how long the conversation is: what the model counted, and an estimate of what came after."""
    replies = [number for number, message in enumerate(session.messages) if message["role"] == "assistant"]
    if not session.usage.total_tokens or not replies:
        return estimate(session.messages)
    return session.usage.total_tokens + estimate(session.messages[replies[-1] + 1 :])


def estimate(messages: Sequence[Message]) -> int:
    """About how many tokens messages take."""
    return int(sum(_length(message) for message in messages) / CHARACTERS_PER_TOKEN)


def _length(message: Message) -> int:
    calls = sum(len(str(call["function"])) for call in message.get("tool_calls") or ())
    return len(str(message.get("content") or "")) + calls + 20


def _split(
    messages: list[dict[str, Any]], recent_tokens: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The system message, what is to be summarised, and the latest messages; the first of them answers no call."""
    first = 1 if messages and messages[0]["role"] == "system" else 0
    start = len(messages)
    while start > first and estimate(messages[start - 1 :]) <= recent_tokens:
        start -= 1
    while start < len(messages) and messages[start]["role"] == "tool":
        start += 1
    return messages[:first], messages[first:start], messages[start:]


def _request(text: str) -> str:
    """A user's message; of an earlier summary only what the user said in it."""
    if text.startswith(SUMMARY[:20]):
        text = text.partition("## What the user said\n")[2].partition("\n\n## Summary")[0].removeprefix("- ")
    return cut_middle(text, MAX_REQUEST)


def _with_short_results(messages: Sequence[Message]) -> list[Message]:
    return [
        {**message, "content": cut_middle(message["content"], MAX_OLD_RESULT)} if message["role"] == "tool" else message
        for message in messages
    ]


def _outline(messages: Sequence[Message]) -> str:
    """Where no model can summarise: what was called."""
    calls = [call["function"] for message in messages for call in message.get("tool_calls") or ()]
    lines = [f"- {function['name']} {function['arguments'][:200]}" for function in calls[-40:]]
    return "The calls so far, the latest last:\n" + "\n".join(lines)
