"""Packed rows on disk: round trip, memory mapping, atomic replacement, broken files."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codemill.data.packing import Document, PackedRows, pack
from codemill.data.token_file import load_rows, save_rows
from codemill.errors import CodemillError

ARRAYS = ("input_ids", "position_ids", "document_ids", "loss_weights")


@pytest.fixture
def rows() -> PackedRows:
    return pack([Document.of(range(n), 0.25) for n in (3, 9, 16, 2, 7)], 16, pad_id=1)


def test_round_trip_is_memory_mapped(tmp_path: Path, rows: PackedRows) -> None:
    save_rows(rows, tmp_path / "new" / "train.tokens")
    loaded = load_rows(tmp_path / "new" / "train.tokens")
    for name in ARRAYS:
        array = getattr(loaded, name)
        np.testing.assert_array_equal(array, getattr(rows, name))
        assert array.dtype == getattr(rows, name).dtype
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable


def test_saving_replaces_and_leaves_nothing_behind(tmp_path: Path, rows: PackedRows) -> None:
    path = tmp_path / "rows.npy"
    save_rows(rows, path)
    old = load_rows(path)
    save_rows(pack([Document.of([4, 5])], 8, pad_id=0), path)
    assert load_rows(path).input_ids.shape == (1, 8)
    assert old.input_ids.tolist() == rows.input_ids.tolist()
    assert [file.name for file in tmp_path.iterdir()] == ["rows.npy"]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CodemillError, match=r"absent\.npy does not exist"):
        load_rows(tmp_path / "absent.npy")


def test_target_that_cannot_be_written_is_named(tmp_path: Path, rows: PackedRows) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CodemillError, match="cannot write"):
        save_rows(rows, tmp_path / "file" / "rows.npy")


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", np.arange(5))
    with pytest.raises(CodemillError, match=r"other\.npy is not a whole file"):
        load_rows(tmp_path / "other.npy")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(keep=st.integers(0, 767))
def test_truncated_files_are_refused(tmp_path: Path, rows: PackedRows, keep: int) -> None:
    path = tmp_path / "cut.npy"
    save_rows(rows, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CodemillError, match=r"cut\.npy is not a whole file") as error:
        load_rows(path)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(place=st.integers(0, 255), value=st.integers(0, 255))
def test_a_damaged_header_never_escapes_as_another_error(
    tmp_path: Path, rows: PackedRows, place: int, value: int
) -> None:
    path = tmp_path / "bad.npy"
    save_rows(rows, path)
    content = bytearray(path.read_bytes())
    content[place] = value
    path.write_bytes(content)
    try:
        loaded = load_rows(path)
    except CodemillError as error:
        assert "bad.npy" in str(error)  # noqa: PT017 - most damage is refused, some does not matter
    else:
        assert loaded.input_ids.shape == rows.input_ids.shape
