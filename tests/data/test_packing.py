"""Best-fit packing against a plain reference, and the arrays it fills."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.data.best_fit import fill_bins
from codemill.data.packing import Document, pack, split_document
from codemill.errors import CodemillError

LENGTHS = st.lists(st.integers(1, 40), max_size=120)


def reference_bins(lengths: list[int], capacity: int) -> list[int]:
    """Best-fit decreasing by looking at every bin; returns the free space left in each."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, space in enumerate(free) if space >= length]
        if fitting:
            free[min(fitting, key=free.__getitem__)] -= length
        else:
            free.append(capacity - length)
    return free


@given(lengths=LENGTHS, capacity=st.integers(40, 130))
def test_same_bins_as_the_reference(lengths: list[int], capacity: int) -> None:
    bins = [members.tolist() for members in fill_bins(lengths, capacity)]
    free = [capacity - sum(lengths[i] for i in members) for members in bins]
    assert sorted(free) == sorted(reference_bins(lengths, capacity))
    assert min(free, default=0) >= 0
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))


def test_many_documents_of_real_lengths() -> None:
    lengths = np.random.default_rng(0).integers(1, 1025, 4000).tolist()
    assert len(fill_bins(lengths, 1024)) == len(reference_bins(lengths, 1024))


@pytest.mark.parametrize("length", [0, 9])
def test_lengths_out_of_range_are_refused(length: int) -> None:
    with pytest.raises(CodemillError, match=f"document 1 has {length} tokens"):
        fill_bins([3, length], 8)


@given(lengths=LENGTHS)
def test_rows_hold_every_document_once_and_whole(lengths: list[int]) -> None:
    starts = np.cumsum([0, *lengths])
    documents = [Document.of(range(s, s + n), 0.5) for s, n in zip(starts, lengths, strict=False)]
    rows = pack(documents, 64, pad_id=-7)
    found = []
    for ids, positions, numbers, weights in zip(
        rows.input_ids, rows.position_ids, rows.document_ids, rows.loss_weights, strict=True
    ):
        for number in range(numbers.max() + 1):
            places = np.flatnonzero(numbers == number)
            assert (np.diff(places) == 1).all()
            assert (positions[places] == np.arange(len(places))).all()
            assert weights[places].tolist() == [0.0] + [0.5] * (len(places) - 1)
            found.append(ids[places].tolist())
        padding = numbers == -1
        assert (ids[padding] == -7).all()
        assert not weights[padding].any()
        assert (positions[padding] == np.arange(padding.sum())).all()
    assert sorted(found) == sorted(document.ids.tolist() for document in documents)
    assert (rows.document_ids != -1).sum() == sum(lengths)


def test_types_shapes_and_own_weights() -> None:
    rows = pack([Document.of([5, 6, 7], [9.0, 0.0, 1.0]), Document.of([8])], 5, pad_id=0)
    assert rows.input_ids.tolist() == [[5, 6, 7, 8, 0]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 0, 0]]
    assert rows.document_ids.tolist() == [[0, 0, 0, 1, -1]]
    assert rows.loss_weights.tolist() == [[0, 0, 1, 0, 0]]
    assert {a.dtype.name for a in (rows.input_ids, rows.position_ids, rows.document_ids)} == {"int32"}
    assert rows.loss_weights.dtype == np.float32
    assert (len(rows), rows.fill) == (1, 0.8)


def test_nothing_packs_to_no_rows() -> None:
    rows = pack([], 16, pad_id=0)
    assert rows.input_ids.shape == (0, 16)
    assert rows.fill == 0.0


def test_split_keeps_order_and_weights() -> None:
    pieces = split_document(Document.of(range(10), range(10)), 4)
    assert [piece.ids.tolist() for piece in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all((piece.ids == piece.weights).all() for piece in pieces)


def test_a_weight_for_every_token() -> None:
    with pytest.raises(CodemillError, match="2 tokens but 1 weights"):
        Document.of([1, 2], [1.0])
