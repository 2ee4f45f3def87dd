"""`codemill data clean`: the verb, its output and its refusals."""

import gzip
import json
from pathlib import Path

import pytest

from commands.conftest import Run

PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": 'def half(number):\n    """Give half of an even number, and the number itself if it is an odd one."""\n',
    "entry_point": "half",
    "canonical_solution": "    return number // 2 if number % 2 == 0 else number\n",
    "test": "def check(candidate):\n    assert candidate(2) == 1\n",
}


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(PROBLEM).encode()))
    return f"humaneval={path}"


@pytest.fixture
def training(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    records = [{"text": "nothing of note"}, {"text": PROBLEM["prompt"] + PROBLEM["canonical_solution"]}]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records) + "broken\n")
    return path


def test_a_clean_copy_is_written(codemill: Run, training: Path, suite: str, tmp_path: Path) -> None:
    output = tmp_path / "clean.jsonl"
    done = codemill("data", "clean", training, "--against", suite, "--output", output)
    assert done.status == 0, done.err
    assert output.read_text() == training.read_text().splitlines(keepends=True)[0]
    assert "contaminated: 1 (1 by n-gram)" in done.out
    assert "humaneval: 1 with 1 of its problems: HumanEval/0 (1)" in done.out
    assert f"{training}, line 3: not JSON" in done.out
    assert f"written: {output}" in done.out
    assert done.err == ""


def test_the_object_for_programs(codemill: Run, training: Path, suite: str) -> None:
    done = codemill("data", "clean", training, "--against", suite, "--json")
    assert done.status == 0, done.err
    value = json.loads(done.out)
    assert (value["problems"], value["documents"], value["kept"], value["removed"], value["malformed"]) == (
        1,
        3,
        1,
        1,
        1,
    )
    assert value["tasks"] == {"humaneval": {"HumanEval/0": 1}}
    assert value["outputs"] == []


def test_the_report_can_be_named(codemill: Run, training: Path, suite: str, tmp_path: Path) -> None:
    report = tmp_path / "why.jsonl"
    assert codemill("data", "clean", training, "--against", suite, "--report", report).status == 0
    (removed,) = map(json.loads, report.read_text().splitlines())
    assert (removed["line"], removed["task_id"], removed["part"]) == (2, "HumanEval/0", "prompt and solution")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jsonl", "--against", "humaneval"], "missing.jsonl: there is no such file or folder"),
        (["{training}"], "--against"),
        (["{training}", "--against", "no-such-suite"], "no-such-suite"),
        (["{training}", "--against", "{suite}", "--similarity", "7"], "a similarity of 7.0"),
        (["{training}", "--against", "{suite}", "--output", "{training}"], "is an input"),
    ],
)
def test_wrong_requests_are_refused(
    codemill: Run, training: Path, suite: str, arguments: list[str], message: str
) -> None:
    done = codemill("data", "clean", *(a.format(training=training, suite=suite) for a in arguments))
    assert done.status == 2
    assert message in done.error
