"""What becomes of documents that are longer than the context: an error, nothing, their beginning, or pieces."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np

from codemill.data.cached_documents import CachedDocuments, Int64
from codemill.data.document_shard import learned_tokens
from codemill.data.packing import Document
from codemill.data.turn_cuts import Cut, Turns
from codemill.errors import CodemillError, UsageError

POLICIES = ("error", "drop", "truncate", "split")


@dataclass(frozen=True)
class OverlongCounts:
    """Documents longer than the context, those of them that are gone altogether, and tokens that are gone with them or
    cut off. A pair counts as one. nothing_to_learn: records that were skipped since they teach nothing."""

    overlong: int = 0
    dropped: int = 0
    lost_tokens: int = 0
    nothing_to_learn: int = 0

    def lines(self) -> list[str]:
        """What a user is told of it; nothing where nothing was left out."""
        lines = []
        if self.nothing_to_learn:
            lines.append(f"skipped, with nothing to learn from: {self.nothing_to_learn:,}")
        if self.overlong:
            lines.append(
                f"longer than the context: {self.overlong:,}, of these dropped: {self.dropped:,}; "
                f"tokens lost: {self.lost_tokens:,}"
            )
        return lines


class FittedDocuments(Sequence[Document]):
    """Documents of at most `context` tokens; longer ones are cut by the policy, when they are asked for.

    Of what is cut only what has something to learn stays. group: so many neighbours stay or go together (2 for pairs).
    turns: how conversations are split between turns; without it anywhere. room: so many tokens of the context are for
    what is not there yet.
    """

    def __init__(
        self,
        documents: CachedDocuments,
        context: int,
        overlong: str,
        group: int = 1,
        turns: Turns | None = None,
        room: int = 0,
    ) -> None:
        """Raises CodemillError naming the first overlong document if the policy is "error", but texts are split."""
        if context < 2 or overlong not in POLICIES:
            raise UsageError(
                f"context = {context}, overlong = {overlong!r}: give 2 or more, and {' or '.join(POLICIES)}"
            )
        self.documents, self._policy, self._turns = documents, overlong, turns
        self._context, self._room = context - room, room
        groups = documents.lengths.reshape(-1, group)
        overlong_groups = np.flatnonzero((groups > self._context).any(axis=1))
        cuts = {int(i): self._cut_group(int(i) * group, group) for i in overlong_groups}
        self._take(cuts, group)
        dropped = sum(not any(members) for members in cuts.values())
        lost = int(documents.lengths.sum() - (self.lengths - self._prefixes).sum())
        self.counts = OverlongCounts(len(cuts), dropped, lost, len(documents.empty))

    def __len__(self) -> int:
        return len(self.sources)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        document = self.documents[int(self.sources[index])]
        start, prefix = int(self._starts[index]), int(self._prefixes[index])
        end = start + int(self.lengths[index]) - prefix
        if not prefix:
            return Document(document.ids[start:end], document.weights[start:end])
        return Document(*(np.concatenate([x[:prefix], x[start:end]]) for x in (document.ids, document.weights)))

    @cached_property
    def learned(self) -> Int64:
        """Tokens with a loss weight of each document [documents]; only those that were cut are read."""
        learned: Int64 = self.documents.learned[self.sources]
        for index in np.flatnonzero(self.lengths != self.documents.lengths[self.sources]):
            learned[index] = learned_tokens(self[int(index)])
        return learned

    @property
    def num_learned(self) -> int:
        """Tokens with a loss weight."""
        return int(self.learned.sum())

    def where(self, index: int) -> str:
        """The file and line that a document came from."""
        return self.documents.where(int(self.sources[index]))

    def domain(self, index: int) -> str:
        """The domain of a document, "" if it has none."""
        return self.documents.domain(int(self.sources[index]))

    def _take(self, cuts: dict[int, list[list[Cut]]], group: int) -> None:
        """Set the arrays [documents]: of which document each is a part, from where, and after how much of its start."""
        pieces = np.ones(len(self.documents), np.int64)
        for i, members in cuts.items():
            pieces[i * group : (i + 1) * group] = [len(member) for member in members]
        self.sources: Int64 = np.repeat(np.arange(len(pieces)), pieces)
        self._starts: Int64 = np.zeros(len(self.sources), np.int64)
        self._prefixes: Int64 = np.zeros(len(self.sources), np.int64)
        self.lengths: Int64 = self.documents.lengths[self.sources]
        first = np.cumsum(pieces) - pieces
        for i, members in cuts.items():
            found = [cut for member in members for cut in member]
            for place, cut in enumerate(found, int(first[i * group])):
                self._starts[place], self._prefixes[place] = cut.start, cut.prefix
                self.lengths[place] = cut.prefix + cut.length

    def _cut_group(self, first: int, group: int) -> list[list[Cut]]:
        members = [self._cut(index) for index in range(first, first + group)]
        return members if all(members) else [[] for _ in members]

    def _cut(self, index: int) -> list[Cut]:
        """What is taken of a document."""
        length, context = int(self.documents.lengths[index]), self._context
        if length <= context:
            return [Cut(0, length)]
        policy = "split" if self._policy == "error" and self.documents.is_text[index] else self._policy
        if policy == "error":
            raise CodemillError(
                f"{self.documents.where(index)}: {length:,} tokens{' and an answer' if self._room else ''}, but the "
                f"context is {context + self._room:,}: raise it, or "
                "choose with overlong = drop, truncate or split what becomes of such conversations"
            )
        if policy == "drop":
            return []
        document = self.documents[index]
        cuts = [Cut(0, context)] if policy == "truncate" else self._split(document, bool(self.documents.is_text[index]))
        return [cut for cut in cuts if document.weights[cut.start + (not cut.prefix) : cut.start + cut.length].any()]

    def _split(self, document: Document, is_text: bool) -> list[Cut]:
        context, length = self._context, len(document)
        if self._turns is None or is_text:
            return [Cut(start, min(context, length - start)) for start in range(0, length, context)]
        return list(self._turns.cuts(document, context))
