"""Which parts of a rendered conversation the assistant wrote, read off the control tokens that the template wrote.

Text in messages cannot be taken for those (see `ControlMarks`), so what a user or a tool says ends no turn. All turns
are found in the rendering of the whole conversation: templates render the beginning of one differently from the whole.
"""

import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from codemill.chat.tokenizer import alternatives
from codemill.errors import CodemillError

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
_ROLE = re.compile(r"[a-z]+(?=\n|\Z)")


@dataclass(frozen=True)
class Part:
    """A stretch of a rendered conversation: a text, or a control token. answer: the number of the assistant's turn
    that wrote it, None for what is given to the model."""

    text: str
    is_control: bool = False
    answer: int | None = None


def to_parts(pieces: Sequence[tuple[str, str | None]]) -> list[Part]:
    """The pairs of `Tokenizer.render_pieces`, one after another."""
    parts = []
    for text, token in pieces:
        parts += [Part(text)] if text else []
        parts += [Part(token, is_control=True)] if token else []
    return parts


def mark_answers(
    parts: Sequence[Part], openings: Sequence[Sequence[Part]], spelled: Sequence[AbstractSet[str]]
) -> list[Part]:
    """The same parts, cut where needed, with the assistant's turns numbered: what it writes, up to the end of the turn.

    openings: what the assistant is given to begin its turn, the longest first; the first that fits is not its own.
    spelled: for each assistant message the control tokens that its own text may spell out. Raises CodemillError for a
    template that is not ChatML, or has not one turn for each message.
    """
    marked: list[Part] = []
    number = 0
    for turn in _turns(parts):
        if _role(turn) != "assistant":
            marked += turn
            continue
        if number < len(spelled):
            marked += _mark_turn(_spell_out(turn, spelled[number]), openings, number)
        number += 1
    if number != len(spelled):
        raise CodemillError(
            f"the chat template renders {len(spelled)} assistant messages as {number} turns; use another template"
        )
    return marked


def _turns(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """The parts from one start of a turn to the next; the first may be what stands before any turn."""
    turn: list[Part] = []
    for part in parts:
        if part.is_control and part.text == TURN_START:
            yield turn
            turn = []
        turn.append(part)
    yield turn


def _role(turn: Sequence[Part]) -> str | None:
    if len(turn) < 2 or not turn[0].is_control or turn[0].text != TURN_START:
        return None
    found = None if turn[1].is_control else _ROLE.match(turn[1].text)
    if found is None:
        raise CodemillError("the chat template is not ChatML: <|im_start|> stands before no role; use another template")
    return found[0]


def _mark_turn(turn: Sequence[Part], openings: Sequence[Sequence[Part]], number: int) -> list[Part]:
    ends = [i for i, part in enumerate(turn) if part.is_control and part.text == TURN_END]
    if len(ends) != 1:
        raise CodemillError(
            f"the chat template does not end an assistant's turn with one <|im_end|>, but with {len(ends)}; use another"
        )
    opening, answer = _without_opening(turn[: ends[0] + 1], openings)
    return [*opening, *(replace(part, answer=number) for part in answer), *turn[ends[0] + 1 :]]


def _spell_out(turn: Sequence[Part], tokens: AbstractSet[str]) -> list[Part]:
    """The turn with these tokens, where its texts contain them, as control tokens."""
    spelled: list[Part] = []
    for part in turn:
        if part.is_control or not any(token in part.text for token in tokens):
            spelled.append(part)
            continue
        texts = alternatives(tokens).split(part.text)
        spelled += [Part(text, is_control=i % 2 == 1) for i, text in enumerate(texts) if text]
    return spelled


def _without_opening(turn: Sequence[Part], openings: Sequence[Sequence[Part]]) -> tuple[list[Part], list[Part]]:
    for opening in openings:
        *whole, last = opening
        here = turn[len(whole)] if len(turn) > len(whole) else None
        if here is None or list(turn[: len(whole)]) != whole or here.is_control != last.is_control:
            continue
        if here == last:
            return list(turn[: len(opening)]), list(turn[len(opening) :])
        if not here.is_control and here.text.startswith(last.text):
            rest = Part(here.text[len(last.text) :])
            return [*whole, last], [rest, *turn[len(opening) :]]
    raise CodemillError("the chat template begins an assistant's turn in an unknown way; use another template")
