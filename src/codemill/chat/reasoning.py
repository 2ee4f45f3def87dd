"""Separates the `<think>` part of an answer from what the user is meant to read."""

from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Answer:
    """An answer, or a piece of one: `reasoning` is what the model thought, `content` what it says."""

    reasoning: str = ""
    content: str = ""


def split_reasoning(text: str, starts_inside: bool = False) -> Answer:
    """Split a whole answer; newlines around the tags belong to neither part. See `ReasoningSplitter`."""
    splitter = ReasoningSplitter(starts_inside)
    first, rest = splitter.feed(text), splitter.finish()
    return Answer(first.reasoning + rest.reasoning, first.content + rest.content)


class ReasoningSplitter:
    """Splits an answer as it arrives; the concatenated pieces do not depend on how the text was cut.

    Only a `<think>` at the start of the answer opens the reasoning. `starts_inside` is for templates that end the
    prompt with `<think>`; an answer that never closes it is all reasoning.
    """

    def __init__(self, starts_inside: bool = False) -> None:
        self._held = ""
        self._state = "reasoning" if starts_inside else "start"
        self._at_edge = True  # nothing of this part yet: newlines are dropped

    def feed(self, delta: str) -> Answer:
        """Take a piece of text, return what it makes certain."""
        self._held += delta
        return self._advance(final=False)

    def finish(self) -> Answer:
        """The text still held back."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> Answer:
        if self._state == "start":
            self._decide_start(final)
        reasoning = self._reasoning(final) if self._state == "reasoning" else ""
        content = self._content() if self._state == "content" else ""
        return Answer(reasoning, content)

    def _decide_start(self, final: bool) -> None:
        text = self._held.lstrip()
        if text.startswith(OPEN):
            self._held, self._state = text[len(OPEN) :], "reasoning"
        elif final or not OPEN.startswith(text):
            self._state, self._at_edge = "content", False

    def _reasoning(self, final: bool) -> str:
        text, closed, rest = self._held.partition(CLOSE)
        if closed:
            self._held, self._state = rest, "content"
            out = self._drop_edge(text).rstrip("\n")
            self._at_edge = True
            return out
        keep = 0 if final else _held_back(text)
        self._held = text[len(text) - keep :]
        return self._drop_edge(text[: len(text) - keep])

    def _content(self) -> str:
        text, self._held = self._held, ""
        return self._drop_edge(text)

    def _drop_edge(self, text: str) -> str:
        if self._at_edge:
            text = text.lstrip("\n")
            self._at_edge = not text
        return text


def _held_back(text: str) -> int:
    """How many last characters may still turn out to be newlines before, or the start of, the closing tag."""
    partial = next((n for n in range(min(len(CLOSE) - 1, len(text)), 0, -1) if CLOSE.startswith(text[-n:])), 0)
    before = text[: len(text) - partial]
    return partial + len(before) - len(before.rstrip("\n"))
