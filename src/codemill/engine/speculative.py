"""Guessing ahead: who proposes drafts, and how many.

Drafts change no result. The sampler chooses each token as if nothing had been guessed, by the same random number; a
draft only decides whether the logits for the next token have been computed already. So the distribution is that of
plain decode, and with a seed the very tokens are, up to rounding.
"""

from contextlib import suppress
from typing import Protocol
from weakref import WeakKeyDictionary

from codemill.engine.ngram import NgramIndex
from codemill.engine.runner import ForwardPass
from codemill.engine.scheduler import Step
from codemill.engine.sequence import Sequence
from codemill.engine_config import SpeculativeConfig
from codemill.errors import CodemillError

MOST_FORCED = 64  # forced tokens in one pass
START_LENGTH = 4


class Drafter(Protocol):
    """Proposes drafts for sequences that wait for their next token."""

    def follow(self, done: ForwardPass, step: Step, num_accepted: list[int]) -> None:
        """Take note of a pass, before the scheduler does."""

    def propose(self, sequences: list[Sequence], counts: list[int]) -> list[list[int]]:
        """At most `counts[i]` tokens that may come next in sequence i."""


class NgramDrafter:
    """Copies what followed the latest tokens earlier in the same sequence."""

    def __init__(self, config: SpeculativeConfig) -> None:
        self._config = config
        self._indexes: WeakKeyDictionary[Sequence, NgramIndex] = WeakKeyDictionary()

    def follow(self, done: ForwardPass, step: Step, num_accepted: list[int]) -> None:
        """Nothing: the sequences' tokens say it all."""

    def propose(self, sequences: list[Sequence], counts: list[int]) -> list[list[int]]:
        return [
            self._index(sequence).propose(sequence.all_token_ids, count)
            for sequence, count in zip(sequences, counts, strict=True)
        ]

    def _index(self, sequence: Sequence) -> NgramIndex:
        index = self._indexes.get(sequence)
        if index is None:
            index = self._indexes[sequence] = NgramIndex(self._config.min_match, self._config.max_match)
        return index


class Speculation:
    """Gives running sequences their drafts: tokens that a grammar forces, else what the drafter proposes."""

    def __init__(self, drafter: Drafter | None, most: int) -> None:
        self._drafter = drafter
        self._most = most

    def follow(self, done: ForwardPass, step: Step, num_accepted: list[int]) -> None:
        """Learn from a pass: how long drafts should be, and what the drafter needs of it."""
        if self._drafter is None:
            return
        for each, accepted in zip(step.scheduled, num_accepted, strict=True):
            if each.drafts and not each.sequence.is_forced:
                each.sequence.draft_limit = next_length(
                    each.sequence.draft_limit, len(each.drafts), accepted, self._most
                )
        self._drafter.follow(done, step, num_accepted)

    def propose(self, sequences: list[Sequence]) -> None:
        """Set the drafts of sequences that lack nothing but their next token."""
        asking = []
        for sequence in sequences:
            sequence.drafts = _forced(sequence)
            sequence.is_forced = bool(sequence.drafts)
            if not sequence.drafts and self._drafter is not None and sequence.params.speculative:
                asking.append(sequence)
        if self._drafter is None or not asking:
            return
        counts = [min(sequence.draft_limit or START_LENGTH, self._most) for sequence in asking]
        for sequence, count, drafts in zip(asking, counts, self._drafter.propose(asking, counts), strict=True):
            sequence.draft_limit = count
            sequence.drafts = _valid(sequence, drafts)


# A grammar that gives up gets no drafts; the sampler will ask it again, and fail its sequence alone.


def _forced(sequence: Sequence) -> list[int]:
    if sequence.grammar is None:
        return []
    with suppress(CodemillError):
        return sequence.grammar.forced_tokens()[:MOST_FORCED]
    return []


def _valid(sequence: Sequence, drafts: list[int]) -> list[int]:
    if sequence.grammar is None:
        return drafts
    with suppress(CodemillError):
        return drafts[: sequence.grammar.num_valid(drafts)]
    return []


def next_length(current: int, num_drafts: int, num_accepted: int, most: int) -> int:
    """Twice as many drafts after all were accepted, else one more than were."""
    if num_accepted == num_drafts:
        return min(most, max(current, 2 * num_drafts))
    return max(1, min(most, num_accepted + 1))
