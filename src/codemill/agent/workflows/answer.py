"""Answers that are checked, and asked for again with what was wrong with them."""

import json
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from codemill.agent.events import Listener
from codemill.agent.model import Model
from codemill.agent.stops import Interrupted

T = TypeVar("T")
Say = Callable[[str], str]  # what is said to a model -> what it answers

CHARACTERS_PER_TOKEN = 1.5  # of the context, for what a model is shown at a time: the rest is for what it does with it


def fitting(size: int, context_length: int | None) -> int:
    """So many characters, or fewer if the model's context, in tokens, is small."""
    return size if context_length is None else max(min(size, int(context_length * CHARACTERS_PER_TOKEN)), 1000)


class AnswerError(Exception):
    """An answer that will not do. The message is for the model: what is wrong with it."""


class Conversation:
    """A model that is talked to, without tools."""

    def __init__(self, model: Model, system: str, listen: Listener, cancel: threading.Event | None = None) -> None:
        self._model = model
        self._listen = listen
        self._cancel = cancel or threading.Event()
        self._messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
        self.tokens = 0

    def say(self, text: str) -> str:
        """Raises Interrupted, CodemillError if the model fails."""
        if self._cancel.is_set():
            raise Interrupted("stopped")
        self._messages.append({"role": "user", "content": text})
        reply = self._model.reply(self._messages, [], self._listen, self._cancel)
        self._messages.append({"role": "assistant", "content": reply.content})
        self.tokens += reply.usage.total_tokens - reply.usage.cached_tokens
        return reply.content


def ask_until_valid(say: Say, task: str, check: Callable[[str], T], attempts: int) -> T:
    """What `check` makes of the answer; what it raises AnswerError for is asked again. attempts: at most, all in all.

    Raises the last AnswerError.
    """
    said = task
    for attempt in range(1, attempts + 1):
        answer = say(said)
        try:
            return check(answer)
        except AnswerError as error:
            if attempt == attempts:
                raise
            said = f"That will not do: {error}. Answer again, whole, in the form that was asked for."
    raise AssertionError("attempts must be above 0")


def find_object(text: str, key: str) -> dict[str, Any]:
    """The first JSON object with that key in an answer, whatever stands around it. Raises AnswerError."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            value, _ = decoder.raw_decode(text, start)
        except ValueError:
            value = None
        if isinstance(value, dict) and key in value:
            return value
        start = text.find("{", start + 1)
    raise AnswerError(f"there is no JSON object with the key {key!r} in it")
