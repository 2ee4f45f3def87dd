"""Where a conversation that is longer than the context is cut: between turns, as far as they fit.

Turns are found in the tokens: only the chat template writes `<|im_start|>` as a token (see `chat_turns.py`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codemill.chat.tokenizer import Tokenizer
from codemill.data.chat_turns import TURN_START
from codemill.data.packing import Document, Int32

_RESULT = "<tool_response>"  # tool results stand in turns of the user


@dataclass(frozen=True)
class Cut:
    """A piece of a document: its first `prefix` tokens, and `length` tokens from `start`."""

    start: int
    length: int
    prefix: int = 0


@dataclass(frozen=True)
class Turns:
    """What turns begin with, as token ids; start: None for a tokenizer without such a token."""

    start: int | None
    system: Sequence[int]
    assistant: Sequence[int]
    question: Sequence[int]
    results: Sequence[Sequence[int]]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Turns":
        control = tokenizer.control_tokens
        # Roles without their newline, which may be one token with more of them.
        system, assistant, user = (tokenizer.encode(role) for role in ("system", "assistant", "user"))
        results = [tokenizer.encode(f"user\n{_RESULT}")]
        results += [[*tokenizer.encode("user\n"), control[_RESULT]]] if _RESULT in control else []
        return cls(control.get(TURN_START), system, assistant, user, results)

    def cuts(self, document: Document, context: int) -> Iterator[Cut]:
        """Pieces of at most `context` tokens, which together hold each token once.

        A piece with something to learn ends before a question of the user, else before another turn that is not the
        assistant's, so that no answer loses what it answers; where neither fits, it ends where the context is full.
        Each begins with the system messages, and so the tools, unless they fill more than half of the context; what is
        left of a turn that was cut goes without.
        """
        ids, learned = document.ids, np.flatnonzero(document.weights)
        starts = [] if self.start is None else np.flatnonzero(ids == self.start).tolist()
        given = [start for start in starts if not self._begins(ids, start, self.assistant)]
        borders = [start for start in given if self._is_question(ids, start)], given
        prefix = self._system_end(ids, starts)
        shown = prefix if prefix <= context // 2 else 0
        place, is_whole = 0, True
        while place < len(ids):
            repeated = shown if place and is_whole else 0
            first, full = _next(learned, place), place + context - repeated
            end = len(ids) if full >= len(ids) else _border(borders, first, full)
            yield Cut(place, end - place, repeated)
            place, is_whole = end, end in given

    def _is_question(self, ids: Int32, start: int) -> bool:
        return self._begins(ids, start, self.question) and not any(
            self._begins(ids, start, result) for result in self.results
        )

    def _begins(self, ids: Int32, start: int, opening: Sequence[int]) -> bool:
        return ids[start + 1 : start + 1 + len(opening)].tolist() == list(opening)

    def _system_end(self, ids: Int32, starts: Sequence[int]) -> int:
        """The end of the system messages that a conversation begins with; 0 without one."""
        if not starts or starts[0]:
            return 0
        return next((start for start in starts if not self._begins(ids, start, self.system)), 0)


def _next(learned: npt.NDArray[np.int64], place: int) -> int:
    """The first learned token from `place` on, or `place` if there is none."""
    found = int(np.searchsorted(learned, place))
    return int(learned[found]) if found < len(learned) else place


def _border(borders: Iterable[Sequence[int]], first: int, full: int) -> int:
    """The last border after `first` up to `full`, of the first kind of which there is one; else `full`."""
    fitting = ([border for border in kind if first < border <= full] for kind in borders)
    return next((found[-1] for found in fitting if found), full)
