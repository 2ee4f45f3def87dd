"""Packed rows of preference pairs: the two documents of a pair stand beside each other in one row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codemill.data.best_fit import Bins, fill_bins
from codemill.data.conversations import PreferencePair
from codemill.data.document_shard import learned_tokens
from codemill.data.held_out import Subset, split_held_out
from codemill.data.packing import Document, PackedRows, build_rows
from codemill.errors import CodemillError

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PairRows:
    """Rows in which document 2 i of a row is the chosen answer of its pair i, document 2 i + 1 the rejected one.

    pairs: which pairs these are, row after row, in the sequence that was packed. pairs_in_row [rows]: how many each
    row has.
    """

    rows: PackedRows
    pairs: Int64
    pairs_in_row: Int64


class PackedPairs:
    """Pairs in rows of `capacity` places, each row built when it is asked for; one a row without `packing`."""

    def __init__(self, pairs: Sequence[PreferencePair], capacity: int, pad_id: int, packing: bool = True) -> None:
        """Raises CodemillError naming a pair that is longer than `capacity`, both documents together."""
        self.pairs, self.capacity, self._pad_id = pairs, capacity, pad_id
        self.lengths = _of_both(pairs, "lengths", len)
        sums = self.lengths.sum(axis=1)
        for index in np.flatnonzero(sums > capacity):
            raise CodemillError(f"pair {index} has {sums[index]} tokens, but a row {capacity}: leave it out")
        self.bins = fill_bins(sums, capacity)
        if not packing:
            self.bins = Bins(np.arange(len(pairs)), np.arange(len(pairs) + 1))

    def __len__(self) -> int:
        return len(self.bins)

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def num_learned(self) -> int:
        """Tokens of the answers with a loss weight."""
        return int(_of_both(self.pairs, "learned", learned_tokens).sum())

    def take(self, rows: Sequence[int]) -> PairRows:
        """These rows."""
        members = [self.bins[row] for row in rows]
        documents = [[document for index in row for document in self._documents(int(index))] for row in members]
        counts = np.array([len(row) for row in members], np.int64)
        return PairRows(build_rows(documents, self.capacity, self._pad_id), np.concatenate(members), counts)

    def _documents(self, index: int) -> tuple[Document, Document]:
        pair = self.pairs[index]
        return pair.chosen, pair.rejected


def _of_both(pairs: Sequence[PreferencePair], name: str, of: Callable[[Document], int]) -> Int64:
    """A number for both documents of each pair [pairs, 2], without reading them where the sequence knows."""
    known = getattr(pairs, name, None)
    if known is None:
        known = [(of(pair.chosen), of(pair.rejected)) for pair in pairs]
    return np.asarray(known, np.int64).reshape(-1, 2)


def split_pairs(
    pairs: Sequence[PreferencePair], fraction: float, seed: int = 0
) -> tuple[Sequence[PreferencePair], Sequence[PreferencePair]]:
    """Pairs to train on, and about `fraction` of all to validate with; those of one prompt are on the same side."""
    prompts = [Document.of(_prompt(pair.chosen)) for pair in pairs]
    held_out = {id(prompt) for prompt in split_held_out(prompts, fraction, seed)[1]}
    is_held_out = np.array([id(prompt) in held_out for prompt in prompts], bool)
    return Subset(pairs, np.flatnonzero(~is_held_out)), Subset(pairs, np.flatnonzero(is_held_out))


def _prompt(document: Document) -> npt.NDArray[np.int32]:
    """The tokens before the first that is learned."""
    learned = np.flatnonzero(document.weights)
    return document.ids[: learned[0]] if len(learned) else document.ids
