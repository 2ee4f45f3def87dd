"""Makes a conversation shorter before it is too long for the model, and keeps what must not be lost."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from codemill.agent.events import Listener, Notice
from codemill.agent.model import Message, Model
from codemill.agent.output import cut_middle
from codemill.agent.session import Session
from codemill.agent.stops import ContextTooLong
from codemill.agent.tools.notes import todo_lines

# Shares of the context.
FULL = 0.8  # from which on the conversation is made shorter
RECENT = 0.2  # for the latest messages, which stay as they are
REQUESTS = 0.15  # for the user's own words from before them
SUMMARY_SHARE = 0.2
WORTH = 0.1  # what must be gained

CHARACTERS_PER_TOKEN = 3.0  # an estimate from below
UNKNOWN_CONTEXT = 32_768  # assumed where nobody says how long the context is
ANSWER = 1000  # tokens that a summary takes
MAX_REQUEST = 4000  # characters of a user's message that are kept as they are
MIN_REQUEST = 80
MAX_OLD_RESULT = 400  # characters of an old result, where not all fits

INSTRUCTION = """Stop here. The conversation is about to be cut, and all that remains of it is what you write now. \
Write, in at most 600 words and without calling a tool:
1. What the user wants, with every constraint.
2. What was decided, and why.
3. What was done: files, functions, commands and what they showed.
4. What failed, so that it is not tried again.
5. What comes next."""
BEGINNING = "[The conversation before this was summarised.]"
SUMMARY_HEADING = "\n\n## Summary of the work\n"
TODOS_HEADING = "\n\n## Todos\n"


class Summarizer:
    """Replaces all but the latest messages by a summary that the model writes.

    The user's own words and the open todos are kept as they are, so that no summary can lose them. todos: gives the
    list as text; None for that of the session.
    """

    def __init__(self, todos: Callable[[], str] | None = None) -> None:
        self._todos = todos

    def compact_if_needed(
        self, session: Session, model: Model, listen: Listener, cancel: threading.Event, tools: Sequence[Message] = ()
    ) -> None:
        """Summarise if the conversation comes near the context, and enough of it can be left out."""
        context = model.context_length or UNKNOWN_CONTEXT
        if conversation_tokens(session, tools) <= FULL * context:
            return
        _, old, _ = _split(session.messages, context * RECENT)
        if estimate(old) >= WORTH * context:
            listen(Notice("the conversation is almost as long as the context: it is being summarised"))
            self.compact(session, model, listen, cancel, tools)

    def compact(
        self, session: Session, model: Model, listen: Listener, cancel: threading.Event, tools: Sequence[Message] = ()
    ) -> None:
        """Summarise now; where the latest messages are all there is, them too. tools: those that the model has.

        Raises ContextTooLong if there is nothing to be left out, Interrupted, and CodemillError if the model fails.
        """
        context = model.context_length or UNKNOWN_CONTEXT
        head, old, recent = _split(session.messages, context * RECENT)
        if len(old) < 2:
            head, old, recent = _split(session.messages, 0)
        if len(old) < 2:
            raise ContextTooLong(
                "the conversation is as short as it can be, and does not fit the model's context "
                f"({model.context_length or 'of unknown'} tokens): take a model or server with a longer one"
            )
        summary = cut_middle(
            self._summary(session, model, cancel, tools), int(context * SUMMARY_SHARE * CHARACTERS_PER_TOKEN)
        )
        requests = _requests(session.requests, recent, int(context * REQUESTS * CHARACTERS_PER_TOKEN))
        session.replace([*head, self._message(session, requests, summary), *recent], "summary")

    def _summary(self, session: Session, model: Model, cancel: threading.Event, tools: Sequence[Message]) -> str:
        """What the model writes. It is asked anew, with less, if that does not fit or it calls a tool instead."""
        for messages, shown_tools in _prompts(session, model.context_length or UNKNOWN_CONTEXT, tools):
            try:
                reply = model.reply(messages, shown_tools, lambda event: None, cancel)
            except ContextTooLong:
                continue
            if reply.content.strip() and not reply.tool_calls and not reply.problems:
                return reply.content.strip()
        return _outline(session.messages)

    def _message(self, session: Session, requests: Sequence[str], summary: str) -> dict[str, Any]:
        left = [todo for todo in session.todos if todo["status"] != "completed"]
        todos = self._todos() if self._todos is not None else todo_lines(left)
        said = "\n".join(f"- {request}" for request in requests) or "- (see below)"
        text = f"{BEGINNING}\n\n## What the user said\n{said}{SUMMARY_HEADING}{summary}"
        return {"role": "user", "content": text + (f"{TODOS_HEADING}{todos}" if todos else "")}


def conversation_tokens(session: Session, tools: Sequence[Message] = ()) -> int:
    """About how long the conversation is: what the model counted, and an estimate of what came after."""
    replies = [number for number, message in enumerate(session.messages) if message["role"] == "assistant"]
    if not session.usage.total_tokens or not replies:
        return estimate(session.messages) + int(len(json.dumps(list(tools))) / CHARACTERS_PER_TOKEN)
    return session.usage.total_tokens + estimate(session.messages[replies[-1] + 1 :])


def estimate(messages: Sequence[Message]) -> int:
    """About how many tokens messages take."""
    return int(sum(_length(message) for message in messages) / CHARACTERS_PER_TOKEN)


def _length(message: Message) -> int:
    calls = sum(len(str(call["function"])) for call in message.get("tool_calls") or ())
    return len(str(message.get("content") or "")) + calls + 20


def _split(
    messages: Sequence[dict[str, Any]], recent_tokens: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The system message, what is to be summarised, and the latest messages; the first of them answers no call."""
    first = 1 if messages and messages[0]["role"] == "system" else 0
    start, room = len(messages), recent_tokens * CHARACTERS_PER_TOKEN
    while start > first and (room := room - _length(messages[start - 1])) >= 0:
        start -= 1
    while start < len(messages) and messages[start]["role"] == "tool":
        start += 1
    return list(messages[:first]), list(messages[first:start]), list(messages[start:])


def _requests(requests: Sequence[str], recent: Sequence[Message], room: int) -> list[str]:
    """What the user asked for before the latest messages. The last of it has half of the room, if it needs that."""
    old = list(requests)
    for message in reversed(recent):
        if old and message["role"] == "user" and message["content"] == old[-1]:
            old.pop()
    limit = MAX_REQUEST
    while limit > MIN_REQUEST and sum(min(len(request), limit) for request in old) > room:
        limit //= 2
    limits = [limit] * (len(old) - 1) + [max(limit, room // 2)]
    return [cut_middle(request, most) for request, most in zip(old, limits, strict=False)]


def _prompts(
    session: Session, context: int, tools: Sequence[Message]
) -> Iterator[tuple[list[Message], Sequence[Message]]]:
    """What the model may be asked, the best first. With the same beginning as before, most of it is in its cache."""
    instruction = {"role": "user", "content": INSTRUCTION}
    if conversation_tokens(session, tools) + ANSWER <= context:
        yield [*session.messages, instruction], tools
    short = [_with_short_result(message) for message in session.messages]
    if estimate(short) + ANSWER <= context:
        yield [*short, instruction], ()
    head, _, recent = _split(short, context / 3)
    requests = "\n".join(_requests(session.requests, recent, context // 4))
    said = {"role": "user", "content": f"{requests}\n\n{cut_middle(_earlier(session.messages), context)}"}
    yield [*head, said, *recent, instruction], ()


def _with_short_result(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] != "tool":
        return message
    return {**message, "content": cut_middle(message["content"], MAX_OLD_RESULT)}


def _earlier(messages: Sequence[Message]) -> str:
    """The summary that the messages begin with, where they do."""
    texts = [str(message.get("content") or "") for message in messages if message["role"] == "user"]
    known = next((text for text in reversed(texts) if text.startswith(BEGINNING)), "")
    return known.partition(SUMMARY_HEADING)[2].partition(TODOS_HEADING)[0]


def _outline(messages: Sequence[Message]) -> str:
    """Where no model can summarise: what was known already, and what was called since."""
    calls = [call["function"] for message in messages for call in message.get("tool_calls") or ()]
    lines = [f"- {function['name']} {function['arguments'][:200]}" for function in calls[-40:]]
    return f"{_earlier(messages)}\n\nThe calls after that, the latest last:\n".lstrip() + "\n".join(lines)
