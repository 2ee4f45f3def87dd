"""Which texts of a suite's problems training data is checked against."""

import gzip
import json
from pathlib import Path

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.eval.problem_texts import PROGRAM, Against, benchmark_problems

RECORD = {
    "task_id": "HumanEval/0",
    "prompt": "def double(number):\n",
    "entry_point": "double",
    "canonical_solution": "    return 2 * number\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}


def test_a_problem_is_its_fields_and_its_program(tmp_path: Path) -> None:
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(RECORD).encode()))
    (problem,) = benchmark_problems([Against.parse(f"humaneval={path}")])
    assert (problem.suite, problem.task_id) == ("humaneval", "HumanEval/0")
    assert problem.parts[PROGRAM] == RECORD["prompt"] + RECORD["canonical_solution"]
    assert problem.parts["test"] == RECORD["test"]
    assert set(problem.parts) == {PROGRAM, "prompt", "canonical_solution", "test"}


def test_lists_and_holes_are_joined(shared_data: Path) -> None:
    mbpp, fill = shared_data / "mbpp" / "mbpp.jsonl", shared_data / "humaneval_infilling"
    found = benchmark_problems(
        [Against.parse(f"mbpp={mbpp}"), Against.parse(f"infilling={fill / 'HumanEval-SingleLineInfilling.jsonl.gz'}")]
    )
    first = found[0].parts
    assert first["test_list"].count("assert ") == 3
    assert first["text"].startswith("Write a function to find")
    holes = [problem.parts for problem in found if problem.suite == "humaneval-infilling"]
    assert len(holes) == 1033
    for parts in holes[:20]:
        middle = parts["canonical_solution"]
        assert parts[PROGRAM] == parts["prompt"] + middle + parts.get("suffix", "")


@pytest.mark.parametrize("text", ["", "=x", "humaneval=", "humaneval:", ":x"])
def test_what_names_no_suite_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="give SUITE"):
        Against.parse(text)


def test_parts_of_suites_can_be_named(shared_data: Path) -> None:
    sanitized = shared_data / "mbpp" / "sanitized-mbpp.json"
    assert len(benchmark_problems([Against.parse(f"mbpp:sanitized={sanitized}")])) == 427
    folder = shared_data / "multipl_e_humaneval"
    assert len(benchmark_problems([Against.parse(f"multipl-e:rust={folder}")])) == 156
    with pytest.raises(UsageError, match="esperanto"):
        benchmark_problems([Against.parse(f"multipl-e:esperanto={folder}")])


def test_a_missing_file_is_told_of_by_the_option_that_names_it() -> None:
    with pytest.raises(UsageError, match="--against humaneval=/nowhere: there is no such file or folder"):
        benchmark_problems([Against.parse("humaneval=/nowhere")])


def test_data_that_cannot_be_fetched_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise OSError("the network is down")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(CodemillError, match=r"the network is down.*give the file with --against cruxeval=PATH"):
        benchmark_problems([Against.parse("cruxeval")])
