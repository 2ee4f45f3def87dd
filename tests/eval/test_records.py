"""Data files: formats told by content, and every error with its file and line."""

import gzip
import json
from pathlib import Path

import pytest

from codemill.errors import CodemillError
from codemill.eval.records import find_file, read_records

ROWS = [{"task_id": "T/0", "prompt": "a\u2028b"}, {"task_id": "T/1", "prompt": "ä\ud800"}, {"task_id": 2, "prompt": ""}]
NEEDED = {"prompt": str}


def write(folder: Path, data: bytes | str, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def fields(path: Path) -> list[dict[str, object]]:
    return [record.fields for record in read_records(path, NEEDED)]


LINES = "\n".join(json.dumps(row) for row in ROWS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.gz", "a"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        LINES,
        LINES + "\n",
        "\ufeff" + LINES,
        "\n  \n" + LINES.replace("\n", "\r\n\r\n") + "\r\n \t\n",
        json.dumps(ROWS),
        "\ufeff\n" + json.dumps(ROWS, indent=2) + "\n",
        json.dumps(ROWS, indent=1).replace("\n", "\r\n"),
    ],
)
def test_the_content_decides(tmp_path: Path, name: str, packed: bool, text: str) -> None:
    data = text.encode()
    assert fields(write(tmp_path, gzip.compress(data) if packed else data, name)) == ROWS


def test_a_gzip_file_of_several_members(tmp_path: Path) -> None:
    parts = [gzip.compress(json.dumps(row).encode() + b"\n") for row in ROWS]
    assert fields(write(tmp_path, b"".join(parts))) == ROWS


def test_an_empty_list_has_no_records(tmp_path: Path) -> None:
    assert fields(write(tmp_path, "[ ]")) == []


GOOD = '{"task_id": "T/0", "prompt": "x"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "data.jsonl: the file is empty"),
        ("\n\n", "data.jsonl: the file is empty"),
        (f"{GOOD}\n\n{{oops", "line 3: not valid JSON"),
        (f"{GOOD}\n[1, 2]", "line 2: a record must be a JSON object, not a list"),
        (f"{GOOD}\n7", "line 2: a record must be a JSON object, not 7"),
        (f'{GOOD}\n{{"task_id": "T/1"}}', "line 2: the record has no field 'prompt' (it has task_id)"),
        (f'{GOOD}\n{{"task_id": "T/1", "prompt": 3}}', "line 2: 'prompt' must be text, not 3"),
        (f'{GOOD}\n{{"task_id": "T/1", "prompt": null}}', "line 2: 'prompt' must be text, not null"),
        (f'{GOOD}\n{{"prompt": "x"}}', "line 2: the record has no field 'task_id'"),
        (f'{GOOD}\n{{"task_id": true, "prompt": "x"}}', "line 2: 'task_id' must be text or a whole number, not true"),
        (f"{GOOD}\n\n{GOOD}", "line 3: task_id 'T/0' is also that of line 1"),
        (f"[\n{GOOD},\n\n{GOOD}]", "line 4: task_id 'T/0' is also that of line 2"),
        (f"[\n{GOOD},\n{{]", "line 3: not valid JSON"),
        (f"[\n{GOOD}\n{GOOD}]", "line 2: a comma is missing"),
        (f"[\n{GOOD},\n", "line 3: the list does not end"),
        (f"[\n{GOOD}\n", "line 3: the list does not end"),
        ('{"task_id": ' + "1" * 5000 + "}", "line 1: not valid JSON: Exceeds the limit (4300 digits)"),
        ("[" * 100_000, "line 1: nested too deeply"),
        ('{"a":' * 100_000, "line 1: nested too deeply"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CodemillError) as caught:
        fields(write(tmp_path, text))
    assert message in str(caught.value)
    assert str(tmp_path / "data.jsonl") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [GOOD.encode() + b"\n\xff\xfe", b"[" + GOOD.encode() + b',\n"\xff"]'])
def test_other_encodings_are_named_with_their_line(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(CodemillError, match=r"line 2: not UTF-8 text"):
        fields(write(tmp_path, text))


@pytest.mark.parametrize(("data", "name"), [(b"PAR1....", "Parquet"), (b"PK\x03\x04...", "zip")])
def test_other_formats_are_named(tmp_path: Path, data: bytes, name: str) -> None:
    with pytest.raises(CodemillError, match=f"a {name} file"):
        fields(write(tmp_path, data))


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(LINES.encode() * 50)
    broken = whole[:40] + b"\0\0\0\0" + whole[44:]
    for data in (whole[:-9], broken):
        with pytest.raises(CodemillError, match="gzip data is damaged or cut short"):
            list(read_records(write(tmp_path, data), key=None))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CodemillError, match=r"none\.jsonl: No such file"):
        fields(tmp_path / "none.jsonl")
    with pytest.raises(CodemillError, match="Is a directory"):
        fields(tmp_path)


def test_with_report_only_the_bad_records_are_lost(tmp_path: Path) -> None:
    text = f'{GOOD}\n{{oops\n{{"task_id": "T/1", "prompt": "y"}}\n{GOOD}\n5\n{{"task_id": "T/2", "prompt": "z"}}'
    errors: list[str] = []
    records = read_records(write(tmp_path, text), NEEDED, report=lambda error: errors.append(str(error)))
    assert [record.fields["prompt"] for record in records] == ["x", "y", "z"]
    assert [error.split(": ")[0].rpartition(" ")[2] for error in errors] == ["2", "4", "5"]


def test_keys_may_be_left_unchecked(tmp_path: Path) -> None:
    assert len(list(read_records(write(tmp_path, f"{GOOD}\n{GOOD}"), key=None))) == 2


def test_a_record_says_what_it_lacks(tmp_path: Path) -> None:
    (record,) = read_records(write(tmp_path, GOOD))
    assert record.where.endswith("data.jsonl, line 1")
    assert record.need("prompt", str) == "x"
    with pytest.raises(CodemillError, match="line 1: the record has no field 'test'"):
        record.need("test")
    with pytest.raises(CodemillError, match="'prompt' must be a list or null, not \"x\""):
        record.need("prompt", (list, type(None)))


def test_find_file(tmp_path: Path) -> None:
    one, two = write(tmp_path, "x", "b-one.jsonl"), write(tmp_path, "x", "b-two.jsonl")
    assert find_file(one, ["nothing"]) == one
    assert find_file(tmp_path, ["a*", "*-two.jsonl", "*"]) == two
    with pytest.raises(CodemillError, match=r"holds b-one\.jsonl, b-two\.jsonl: name one"):
        find_file(tmp_path, ["b*"])
    with pytest.raises(CodemillError, match="holds no file named like"):
        find_file(tmp_path, ["c*"])
    with pytest.raises(CodemillError, match="there is no such file"):
        find_file(tmp_path / "none", ["c*"])


def test_a_damaged_first_line_does_not_make_the_file_a_list(tmp_path: Path) -> None:
    path = write(tmp_path, '[{"task_id": "T/0"\n{"task_id": "T/1", "prompt": ""}\n{"task_id": "T/2", "prompt": ""}\n')
    errors: list[CodemillError] = []
    found = [record.fields["task_id"] for record in read_records(path, NEEDED, report=errors.append)]
    assert found == ["T/1", "T/2"]
    assert [str(error).partition(": ")[0] for error in errors] == [f"{path}, line 1"]
