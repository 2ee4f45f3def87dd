"""Best-fit packing: whole documents side by side in rows of a fixed length, in few rows.

Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (best-fit decreasing); `best_fit.py` has a histogram of
the rows' free space, with a bitmask over its filled cells, in the place of their segment tree.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codemill.data.best_fit import fill_bins
from codemill.errors import CodemillError

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

PADDING_DOCUMENT = -1


@dataclass(frozen=True, eq=False)
class Document:
    """Token `ids` [n] int32 and, for each, the loss weight [n] float32 of predicting it."""

    ids: Int32
    weights: Float32

    @classmethod
    def of(cls, ids: Iterable[int], weights: Iterable[float] | float = 1.0) -> "Document":
        """Build from plain lists; one number for `weights` counts for every token."""
        array = np.fromiter(ids, dtype=np.int32)
        if isinstance(weights, Iterable):
            return cls(array, np.fromiter(weights, dtype=np.float32))
        return cls(array, np.full(len(array), weights, dtype=np.float32))

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.weights):
            raise CodemillError(f"a document has {len(self.ids)} tokens but {len(self.weights)} weights; give one each")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Rows of packed documents, all arrays [rows, T].

    `position_ids` restart at 0 with every document and with the padding; `document_ids` count from 0 in every
    row and are -1 on padding; `loss_weights` weigh the prediction of the token AT that place from those before
    it in its document, and are 0 on a document's first token and on padding.
    """

    input_ids: Int32
    position_ids: Int32
    document_ids: Int32
    loss_weights: Float32

    def __len__(self) -> int:
        return len(self.input_ids)

    def take(self, rows: Sequence[int]) -> "PackedRows":
        """These rows."""
        return PackedRows(**{name: array[rows] for name, array in vars(self).items()})

    @property
    def fill(self) -> float:
        """Share of the places that hold a token of a document."""
        return float((self.document_ids != PADDING_DOCUMENT).mean()) if self.document_ids.size else 0.0


def split_document(document: Document, capacity: int) -> list[Document]:
    """Cut into consecutive pieces of at most `capacity` tokens."""
    starts = range(0, len(document), capacity)
    return [Document(document.ids[s : s + capacity], document.weights[s : s + capacity]) for s in starts]


def pack(documents: Sequence[Document], capacity: int, pad_id: int) -> PackedRows:
    """Pack documents of 1..capacity tokens into rows of `capacity` places, the rest filled with `pad_id`."""
    bins = fill_bins([len(document) for document in documents], capacity)
    return build_rows([[documents[index] for index in members] for members in bins], capacity, pad_id)


def build_rows(members: Sequence[Sequence[Document]], capacity: int, pad_id: int) -> PackedRows:
    """Rows that hold these documents, each row those of one entry."""
    shape = (len(members), capacity)
    rows = PackedRows(
        input_ids=np.full(shape, pad_id, dtype=np.int32),
        position_ids=np.zeros(shape, dtype=np.int32),
        document_ids=np.full(shape, PADDING_DOCUMENT, dtype=np.int32),
        loss_weights=np.zeros(shape, dtype=np.float32),
    )
    for row, documents in enumerate(members):
        _fill_row(rows, row, documents)
    return rows


def _fill_row(rows: PackedRows, row: int, documents: Sequence[Document]) -> None:
    start = 0
    for number, document in enumerate(documents):
        end = start + len(document)
        rows.input_ids[row, start:end] = document.ids
        rows.position_ids[row, start:end] = np.arange(len(document))
        rows.document_ids[row, start:end] = number
        rows.loss_weights[row, start + 1 : end] = document.weights[1:]
        start = end
    rows.position_ids[row, start:] = np.arange(rows.position_ids.shape[1] - start)
