"""Cleaning training files: what is clean comes through byte for byte, and all the rest is named."""

import gzip
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from codemill.data.clean import CleanSummary, clean
from codemill.data.clean_outputs import Destination
from codemill.data.contamination import BenchmarkProblem, ContaminationIndex
from codemill.data.documents import TrainingFile, find_files, read_documents, strings
from codemill.errors import CodemillError, UsageError

SECRET = "def frobnicate(widgets): return sorted(widgets, key=lambda widget: widget.colour)[:17]"
INDEX = ContaminationIndex([BenchmarkProblem("toy", "Toy/1", {"code": SECRET})])
CLEAN = b'{"text": "clean \\ud800 text",   "n": 1.50}\r\n'
BAD = json.dumps({"text": f"before\n{SECRET}\nafter"}).encode() + b"\n"


def run(inputs: Sequence[Path], output: Path | None = None, report: Path | None = None) -> CleanSummary:
    return clean(inputs, find_files(inputs), INDEX, Destination(output, report))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_clean_records_come_through_byte_for_byte(tmp_path: Path) -> None:
    source, output = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    kept = [b"\xef\xbb\xbf" + CLEAN, b"\n", b'{"ids": [1, 2]}\n', b'{"text": "no line end"}']
    source.write_bytes(b"".join([*kept[:2], BAD, *kept[2:]]))
    summary = run([source], output)
    assert output.read_bytes() == b"".join(kept)
    assert (summary.documents, summary.kept, summary.removed, summary.malformed) == (4, 3, 1, 0)
    assert summary.without_text == 1
    assert summary.bytes == source.stat().st_size
    assert summary.tasks == {"toy": {"Toy/1": 1}}
    assert summary.kinds == {"n-gram": 1}
    (removed,) = lines(tmp_path / "out.jsonl.removed.jsonl")
    assert (removed["file"], removed["line"], removed["suite"], removed["task_id"]) == (str(source), 3, "toy", "Toy/1")
    assert removed["evidence"].startswith("def frobnicate widgets return")
    assert names(tmp_path) == ["a.jsonl", "out.jsonl", "out.jsonl.removed.jsonl"]
    assert summary.outputs == (str(tmp_path / "out.jsonl.removed.jsonl"), str(output))


@pytest.mark.parametrize(
    "record",
    [
        {"text": SECRET},
        {"content": SECRET},
        {"prompt": SECRET[:40], "completion": SECRET[40:]},
        {"prompt": "Write it.", "completion": SECRET},
        {"instruction": "x", "input": "", "output": SECRET},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": SECRET}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": SECRET}]}]},
        {"messages": [{"tool_calls": [{"function": {"name": "f", "arguments": {"code": SECRET}}}]}]},
        {"messages": [{"tool_calls": [{"function": {"arguments": json.dumps({"code": f"x\n{SECRET}\ny"})}}]}]},
    ],
)
def test_all_text_of_a_record_is_checked(tmp_path: Path, record: dict[str, Any]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))
    assert run([path]).removed == 1


def test_malformed_lines_are_named_and_kept_apart(tmp_path: Path) -> None:
    source, output = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    bad = [b'{"text": \n', b"[1]\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'"text"\n']
    source.write_bytes(CLEAN + b"".join(bad) + BAD)
    summary = run([source], output)
    assert output.read_bytes() == CLEAN
    assert (summary.kept, summary.removed, summary.malformed) == (1, 1, 5)
    assert summary.faults[0].startswith(f"{source}, line 2: not JSON (")
    apart = lines(tmp_path / "out.jsonl.malformed.jsonl")
    assert [entry["line"] for entry in apart] == [2, 3, 4, 5, 6]
    assert [entry["bytes"].encode("utf-8", "surrogateescape") for entry in apart] == bad
    source.write_bytes(CLEAN)
    run([source], output)
    assert not (tmp_path / "out.jsonl.malformed.jsonl").exists()


def test_a_folder_is_copied_with_its_structure(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "deep" / "er").mkdir(parents=True)
    (source / ".git").mkdir()
    (source / ".git" / "config").write_text(SECRET)
    (source / "deep" / "er" / "a.py").write_text(f"import x\n\n\n{SECRET}\n")
    (source / "deep" / "b.txt").write_bytes("clean ünï\r\n".encode())
    (source / "c.jsonl.gz").write_bytes(gzip.compress(CLEAN + BAD))
    (source / "all.jsonl").write_bytes(BAD)
    (source / "empty.jsonl").write_bytes(b"")
    (source / "image.png").write_bytes(b"\x89PNG\0\xff")
    (source / "zeros.txt").write_bytes(b"a\0b")
    summary = run([source], tmp_path / "out")
    assert names(tmp_path / "out") == ["all.jsonl", "c.jsonl.gz", "deep/b.txt", "empty.jsonl"]
    assert (tmp_path / "out" / "deep" / "b.txt").read_bytes() == "clean ünï\r\n".encode()
    assert gzip.decompress((tmp_path / "out" / "c.jsonl.gz").read_bytes()) == CLEAN
    assert (tmp_path / "out" / "all.jsonl").read_bytes() == b""
    assert (summary.files, summary.kept, summary.removed, summary.malformed) == (7, 2, 3, 2)
    removed = lines(tmp_path / "out.removed.jsonl")
    assert [(Path(entry["file"]).name, entry["line"]) for entry in removed] == [
        ("all.jsonl", 1),
        ("c.jsonl.gz", 2),
        ("a.py", None),
    ]
    assert [entry["fault"] for entry in lines(tmp_path / "out.malformed.jsonl")] == [
        "no UTF-8 text (invalid start byte at byte 0)",
        "a binary file",
    ]


def test_without_an_output_only_the_report_is_written(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(CLEAN + BAD)
    assert run([source]).outputs == ()
    assert names(tmp_path) == ["a.jsonl"]
    run([source], report=tmp_path / "report" / "r.jsonl")
    assert names(tmp_path) == ["a.jsonl", "report/r.jsonl"]
    assert len(lines(tmp_path / "report" / "r.jsonl")) == 1


def test_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl.gz"
    source.write_bytes(gzip.compress(CLEAN * 50 + BAD))
    run([source], tmp_path / "one.jsonl.gz")
    run([source], tmp_path / "two.jsonl.gz")
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()


def test_a_failure_leaves_earlier_outputs_alone(tmp_path: Path) -> None:
    good, broken = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    good.write_bytes(CLEAN)
    noise = random.Random(0).randbytes(100_000).hex().encode()
    broken.write_bytes(gzip.compress(b'{"text": "' + noise + b'"}\n')[:-40_000])
    output = tmp_path / "out"
    output.mkdir()
    (output / "a.jsonl").write_text("from before")
    with pytest.raises(CodemillError, match=r"b.jsonl.gz cannot be decompressed \(.*\): get it again"):
        run([good, broken], output)
    broken.write_bytes(b"no gzip at all")
    with pytest.raises(CodemillError, match="cannot be decompressed"):
        run([good, broken], output)
    assert names(tmp_path) == ["a.jsonl", "b.jsonl.gz", "out/a.jsonl"]
    assert (output / "a.jsonl").read_text() == "from before"


def test_inputs_are_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(BAD)
    (folder / "b.jsonl").write_bytes(BAD)
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.jsonl").write_bytes(BAD)
    with pytest.raises(UsageError, match="is an input"):
        run([folder / "a.jsonl"], folder / "a.jsonl")
    with pytest.raises(UsageError, match="is an input"):
        run([folder / "a.jsonl", folder / "b.jsonl"], folder)
    with pytest.raises(UsageError, match="lies in the input"):
        run([folder], folder / "clean")
    with pytest.raises(UsageError, match="would both be written to"):
        run([folder / "a.jsonl", other / "a.jsonl"], tmp_path / "out")
    assert (folder / "a.jsonl").read_bytes() == BAD
    run([folder / "a.jsonl"], other)  # a folder that exists takes the file
    assert (other / "a.jsonl").read_bytes() == b""


@pytest.mark.parametrize("name", ["a.json", "a.parquet", "a.jsonl.zst"])
def test_what_cannot_be_read_record_by_record_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"[]")
    with pytest.raises(UsageError, match=f"{name}: convert it to JSON Lines"):
        find_files([tmp_path / name])


def test_inputs_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing: there is no such file or folder"):
        find_files([tmp_path / "missing"])
    with pytest.raises(UsageError, match="holds no file"):
        find_files([tmp_path])


def test_progress_adds_up_to_the_size_of_the_files(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    plain.write_bytes(CLEAN * 1000)
    packed.write_bytes(gzip.compress(os.urandom(1000).hex().encode() * 100 + b"\n"))
    for path in (plain, packed):
        seen: list[int] = []
        documents = list(read_documents(TrainingFile(path, Path(path.name)), seen.append))
        assert sum(seen) == path.stat().st_size
        assert len(seen) == len(documents)


def test_a_stream_of_documents_takes_no_memory_for_those_before(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(CLEAN * 10)
    documents = read_documents(TrainingFile(path, Path("a.jsonl")))
    assert next(documents).line == 1
    assert sum(1 for _ in documents) == 9


def test_strings_come_in_order_and_out_of_json_in_strings() -> None:
    value = {"a": ["1", {"b": "2", "c": 3}], "d": '{"e": ["4", "5"]}', "f": "{not json}", "g": "[1, 2]"}
    assert list(strings(value)) == ["1", "2", "4", "5", "{not json}"]
