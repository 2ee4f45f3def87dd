"""Rows that are built when asked for are the rows of `pack`."""

from pathlib import Path

import numpy as np
import pytest

from codemill.data.held_out import split_held_out
from codemill.data.packed_documents import PackedDocuments
from codemill.data.packing import Document, PackedRows, pack

FIELDS = ("input_ids", "position_ids", "document_ids", "loss_weights")


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    draw = np.random.default_rng(0)
    return [Document.of(draw.integers(0, 99, n), draw.random(n)) for n in draw.integers(1, 33, 600)]


def assert_equal(found: PackedRows, expected: PackedRows) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_rows_taken_and_saved_are_those_of_pack(documents: list[Document], tmp_path: Path) -> None:
    expected = pack(documents, 64, pad_id=7)
    packed = PackedDocuments(documents, 64, pad_id=7)
    assert (len(packed), packed.fill) == (len(expected), pytest.approx(expected.fill))
    assert_equal(packed.take(range(len(packed))), expected)
    seen: list[int] = []
    saved = packed.save(tmp_path / "rows.npy", seen.append)
    assert_equal(saved, expected)
    assert isinstance(saved.input_ids.base, np.memmap)
    assert sum(seen) == len(packed)


def test_a_document_a_row_without_packing(documents: list[Document]) -> None:
    rows = PackedDocuments(documents, 64, pad_id=7, packing=False).take([5])
    assert rows.input_ids[0, : len(documents[5])].tolist() == documents[5].ids.tolist()
    assert set(rows.document_ids[0, len(documents[5]) :].tolist()) == {-1}


def test_held_out_documents_are_chosen_by_content(documents: list[Document]) -> None:
    train, held_out = split_held_out([*documents, *documents], 0.25, seed=1)
    assert len(train) + len(held_out) == 2 * len(documents)
    assert 0.15 < len(held_out) / (2 * len(documents)) < 0.35
    assert not {d.ids.tobytes() for d in train} & {d.ids.tobytes() for d in held_out}
    again = split_held_out([*documents, *documents], 0.25, seed=1)[1]
    assert [d.ids.tobytes() for d in again] == [d.ids.tobytes() for d in held_out]
    assert [d.ids.tobytes() for d in split_held_out(documents, 0.25, seed=2)[1]] != [
        d.ids.tobytes() for d in held_out[: len(held_out) // 2]
    ]
