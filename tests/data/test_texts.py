"""Files as documents, documents as windows."""

import gzip
import json
from pathlib import Path

import pytest

from codemill.data.texts import cut_windows, read_texts, sample_windows
from codemill.errors import CodemillError, UsageError


def test_records_and_whole_files_are_documents(tmp_path: Path) -> None:
    records = [{"text": "one"}, {"messages": [{"content": "two"}, {"content": "three"}]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    (tmp_path / "b.py").write_text("x = 1\n")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "empty.txt").write_text(" \n")
    assert read_texts(tmp_path) == ["one", "two\n\nthree", "x = 1\n", "packed"]
    assert read_texts(tmp_path / "b.py") == ["x = 1\n"]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.jsonl", b'{"text": "one"}\n{"text"\n', "a.jsonl, line 2: not JSON"),
    ("a.txt", b"\xff\xfe\x00", "a.txt: no UTF-8"),
    ("a.txt.gz", b"plain", "cannot be decompressed"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CodemillError, match=message):
        read_texts(tmp_path / name)


def test_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n")
    for path in (tmp_path / "a.txt", tmp_path / "missing"):
        with pytest.raises(UsageError, match=r"no text|no such file"):
            read_texts(path)


def test_windows_hold_each_token_once_but_for_rests_of_one() -> None:
    documents = [list(range(10)), [], [5], list(range(20, 29))]
    windows = cut_windows(documents, 4)
    assert windows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [20, 21, 22, 23], [24, 25, 26, 27]]


def test_samples_are_windows_enough_and_no_more() -> None:
    documents = [list(range(start, start + 50)) for start in (0, 100, 200)]
    sample = sample_windows(documents, 10, 95, seed=3)
    assert len(sample) == 10
    assert sample == sample_windows(documents, 10, 95, seed=3) != sample_windows(documents, 10, 95, seed=4)
    assert all(window in cut_windows(documents, 10) for window in sample)
    assert len(sample_windows(documents, 10, 10_000, seed=3)) == 15
