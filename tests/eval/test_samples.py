"""Samples files: nothing of them is lost silently."""

import gzip
import json
from pathlib import Path

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.eval.samples import GivenSample, GivenSamples, read_samples
from codemill.eval.suite import Answer
from eval.tiny import write_lines

TASKS = {"T/0": 0, "T/1": 0, "T/2": 0}


def texts(given: GivenSamples) -> list[tuple[str, int, str, bool]]:
    return [(s.task_id, s.index, s.answer.text, s.answer.whole) for s in given.samples]


def test_both_formats(tmp_path: Path) -> None:
    lines = [
        {"task_id": "T/0", "completion": "a"},
        {"task_id": "T/1", "solution": "b", "_identifier": "T/1_0"},
        {"task_id": "T/2", "completion": "c", "solution": "whole"},
    ]
    given = read_samples(write_lines(tmp_path / "s.jsonl", lines), TASKS)
    assert texts(given) == [("T/0", 0, "a", False), ("T/1", 0, "b", True), ("T/2", 0, "whole", True)]
    assert (given.problems, given.missing(TASKS), given.per_task) == ([], [], 1)


def test_gzip_and_a_log_of_our_own(tmp_path: Path) -> None:
    record = {"task_id": "T/0", "index": 3, "completion": "program", "whole": True, "raw": "```program```"}
    path = tmp_path / "s.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(record).encode()))
    assert texts(read_samples(path, TASKS)) == [("T/0", 0, "program", True)]


def test_evalplus_folder(tmp_path: Path) -> None:
    for name, text in (("T_0/0.py", "first"), ("T_0/1.py", "second"), ("T_9/0.py", "x"), ("T_1/notes.txt", "y")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    given = read_samples(tmp_path, TASKS)
    assert texts(given) == [("T/0", 0, "first", True), ("T/0", 1, "second", True)]
    assert len(given.problems) == 1
    assert "T_9" in given.problems[0]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"task_id": "T/1", "completion": "x"', "JSON"),
        ("not json", "JSON"),
        ("[1, 2]", "object"),
        ('"text"', "object"),
        ('{"completion": "x"}', "task_id"),
        ('{"task_id": ["T/1"], "completion": "x"}', "task_id"),
        ('{"task_id": "T/1"}', "neither 'completion' nor 'solution'"),
        ('{"task_id": "T/1", "completion": null}', "completion"),
        ('{"task_id": "T/1", "completion": 7}', "completion"),
        ('{"task_id": "T/1", "completion": "\\ud8"}', "JSON"),
        ('{"task_id": "T/99", "completion": "x"}', "'T/99'"),
        ("[" * 100_000, ""),
    ],
)
def test_a_bad_line_is_named_and_the_others_count(tmp_path: Path, line: str, why: str) -> None:
    good = [{"task_id": task_id, "completion": task_id} for task_id in TASKS]
    path = write_lines(tmp_path / "s.jsonl", [good[0], line, "", good[1], good[2]])
    given = read_samples(path, TASKS)
    assert [s.task_id for s in given.samples] == list(TASKS)
    assert len(given.problems) == 1
    assert given.problems[0].startswith(f"{path}, line 2: ")
    assert why in given.problems[0]
    assert "\n" not in given.problems[0]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(b'{"task_id": "T/0", "completion": "\xff"}\n{"task_id": "T/1", "completion": "x"}')
    given = read_samples(path, TASKS)
    assert [s.task_id for s in given.samples] == ["T/1"]
    assert "line 1: not UTF-8" in given.problems[0]


def test_different_completions_of_a_task_are_its_samples(tmp_path: Path) -> None:
    lines = [{"task_id": "T/0", "completion": text} for text in "abc"] + [{"task_id": "T/1", "completion": "a"}]
    given = read_samples(write_lines(tmp_path / "s.jsonl", lines), TASKS)
    assert [(s.task_id, s.index) for s in given.samples] == [("T/0", 0), ("T/0", 1), ("T/0", 2), ("T/1", 0)]
    assert given.problems == []
    assert given.missing(TASKS) == ["T/2"]


def test_the_same_line_twice_counts_once(tmp_path: Path) -> None:
    lines = [{"task_id": task_id, "completion": "x"} for task_id in ("T/0", "T/1", "T/0", "T/2")]
    path = write_lines(tmp_path / "s.jsonl", lines)
    given = read_samples(path, TASKS)
    assert [s.task_id for s in given.samples] == ["T/0", "T/1", "T/2"]
    assert given.problems == [f"{path}, line 3: the same sample of T/0 as line 1, counted once"]


def test_of_several_samples_a_task_equal_ones_all_count(tmp_path: Path) -> None:
    """A model that is sure of itself writes the same text again: leaving that out would distort pass@k."""
    lines = [{"task_id": task_id, "completion": text} for task_id in TASKS for text in "aab"]
    given = read_samples(write_lines(tmp_path / "s.jsonl", lines), TASKS)
    assert (len(given.samples), given.problems, given.per_task) == (9, [], 3)


@pytest.mark.parametrize("text", ["x" * 10_000_000, "a\0b", "\ud800", "\udcff\ud83d", "", "\r\n\u2028\x85"])
def test_strange_completions_come_through(tmp_path: Path, text: str) -> None:
    lines = [{"task_id": "T/0", "completion": text}, {"task_id": "T/1", "solution": text}]
    given = read_samples(write_lines(tmp_path / "s.jsonl", lines), TASKS)
    assert [s.answer for s in given.samples] == [Answer(text), Answer(text, whole=True)]
    assert given.problems == []


def test_numbers_as_task_ids(tmp_path: Path) -> None:
    given = read_samples(write_lines(tmp_path / "s.jsonl", [{"task_id": 11, "completion": "x"}]), {"11"})
    assert given.samples == [GivenSample("11", 0, Answer("x"), "anywhere")]


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_samples(tmp_path / "nowhere", TASKS)
    with pytest.raises(CodemillError, match="empty"):
        read_samples(write_lines(tmp_path / "empty", []), TASKS)


def test_a_damaged_gzip_file(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"task_id": "T/0", "completion": "x"}\n' * 1000)[:-20])
    with pytest.raises(CodemillError, match="damaged or cut short"):
        read_samples(path, TASKS)
