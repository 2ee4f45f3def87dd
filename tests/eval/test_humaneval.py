"""HumanEval and HumanEval+: published formats, programs as the authors make them, and answers of all kinds."""

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.eval import evalplus_checker
from codemill.eval.humaneval import HumanEval, HumanEvalPlus
from codemill.eval.suite import Answer, Problem, Run, SuiteOptions
from codemill.sandbox.job import Limits
from eval.verdicts import judge_all, verdicts

ADD = {
    "task_id": "HumanEval/0",
    "prompt": 'from typing import List\n\n\ndef add(a: List[int]) -> int:\n    """ The sum. """\n',
    "entry_point": "add",
    "canonical_solution": "    return sum(a)\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
}
# In the format of EvalPlus's files, and in that of its data set on the Hub.
PLUS = {
    **{name: value for name, value in ADD.items() if name != "test"},
    "contract": "\n    assert isinstance(a, list) # $_CONTRACT_$\n",
    "base_input": [[[1, 2]], [[]]],
    "plus_input": [[[10**20, -1]], [[5]]],
    "atol": 0,
}
ON_THE_HUB = {
    **ADD,
    "test": (
        "import numpy as np\n\ndef assertion(out, exp, atol):\n    if out != exp:\n"
        "        np.testing.assert_allclose(out, exp, atol=atol)\n\n\n"
        "def check(candidate):\n    inputs = [[[1, 2]], [[]]]\n    results = [3, 0]\n"
        "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assertion(candidate(*inp), exp, 1e-06)\n"
    ),
}


def problems(suite: HumanEval, tmp_path: Path, *records: dict[str, Any]) -> Sequence[Problem]:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return suite.load(path)


def plus(tmp_path: Path, **changes: object) -> tuple[HumanEvalPlus, Problem]:
    suite = HumanEvalPlus()
    (problem,) = problems(suite, tmp_path, {**PLUS, **changes})
    return suite, problem


def test_all_gold_solutions_pass(shared_data: Path, run: Run) -> None:
    suite = HumanEval()
    loaded = suite.load(shared_data / "humaneval")
    assert len(loaded) == 164
    assert verdicts(suite, loaded, suite.gold, run) == {"ok": 164}


@pytest.mark.parametrize("style", ["base", "chat"])
def test_gold_solutions_survive_cleaning(shared_data: Path, run: Run, style: Any) -> None:
    """What a perfect model writes, with what models write around it."""
    suite = HumanEval()
    loaded = suite.load(shared_data / "humaneval")[::2]

    def answer(problem: Problem) -> Answer:
        fields = problem.fields
        if style == "base":
            return suite.clean(problem, f"{fields['canonical_solution']}\n\nprint({fields['entry_point']}())\n", style)
        function = fields["prompt"][fields["prompt"].index(f"def {fields['entry_point']}(") :]
        code = f"{function}{fields['canonical_solution']}\nassert {fields['entry_point']}() == 'unlikely'\n"
        return suite.clean(problem, f"<think>```</think>Here:\n\n```python\n{code}```\nDone.", style)

    assert verdicts(suite, loaded, answer, run) == {"ok": len(loaded)}


def test_a_chat_answer_of_the_body_alone(shared_data: Path, run: Run) -> None:
    suite = HumanEval()
    loaded = suite.load(shared_data / "humaneval")[1::4]

    def answer(problem: Problem) -> Answer:
        return suite.clean(problem, f"```python\n{problem.fields['canonical_solution'].strip()}\n```", "chat")

    assert verdicts(suite, loaded, answer, run) == {"ok": len(loaded)}


def test_prompts(tmp_path: Path) -> None:
    suite = HumanEval()
    (problem,) = problems(suite, tmp_path, ADD)
    base = suite.prompt(problem, "base")
    assert base.text == ADD["prompt"]
    assert "\ndef " in base.stop
    (message,) = suite.prompt(problem, "chat").messages or ()
    assert message["role"] == "user"
    assert f"```python\n{ADD['prompt'].strip()}\n```" in message["content"]


BIG = "x = '" + "a" * 10_000_000 + "'"
ANSWERS = {
    "right": ("    return sum(a)", "ok"),
    "wrong": ("    return 3", "failed"),
    "empty": ("", "failed"),
    "no code": ("This adds the numbers.", "failed"),
    "exits": ("    import sys\n    sys.exit(0)", "failed"),
    "exits while it is defined": ("    return sum(a)\nimport sys\nsys.exit(0)", "failed"),
    "exits at once": ("    import os\n    os._exit(0)", "failed"),
    "raises SystemExit": ("    raise SystemExit", "failed"),
    "defined twice, the last one counts": ("    return 3\ndef add(a):\n    return sum(a)", "ok"),
    "defined twice, the last one is wrong": ("    return sum(a)\ndef add(a):\n    return 3", "failed"),
    "its own check": ("    return 3\ndef check(candidate):\n    pass", "failed"),
    "a main part": ("    return sum(a)\nif __name__ == '__main__':\n    raise ValueError", "ok"),
    "prints": ("    print('x' * 100)\n    return sum(a)", "ok"),
    "prints too much": ("    print('x' * 50_000_000)\n    return sum(a)", "output limit"),
    "loops": ("    while True:\n        pass", "timeout"),
    "too much memory": ("    x = 'a' * (1 << 40)\n    return sum(a)", "memory"),
    "NUL": ("    return sum(a)\0", "failed"),
    "NUL in a comment": ("    return sum(a) # \0", "failed"),
    "lone surrogate": ("    x = '\ud800'\n    return sum(a)", "failed"),
    "other encodings": ("    π = 'ü'\n    return sum(a)", "ok"),
    "unclosed string": ('    """', "failed"),
    "deeply nested": (f"    return {'(' * 50_000}1{')' * 50_000}", "failed"),
    "ten megabytes": (f"    {BIG}\n    return sum(a)", "ok"),
    "carriage returns": ("    x = 1\r\n    return sum(a)\r\n", "ok"),
    "reads": ("    return int(input())", "failed"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_of_all_kinds(tmp_path: Path, run: Run, name: str) -> None:
    suite = HumanEval()
    (problem,) = problems(suite, tmp_path, ADD)
    text, verdict = ANSWERS[name]
    judgement = suite.judge(problem, Answer(text), lambda job: run(replace(job, limits=Limits(cpu_seconds=1.0))))
    assert judgement.verdict == verdict or (name == "deeply nested" and judgement.verdict != "ok"), judgement
    assert (judgement.verdict == "ok") == (judgement.detail == "")


def test_a_whole_solution_takes_the_place_of_the_prompt(tmp_path: Path, run: Run) -> None:
    suite = HumanEval()
    (problem,) = problems(suite, tmp_path, ADD)
    assert suite.judge(problem, Answer("def add(a):\n    return sum(a)", whole=True), run).verdict == "ok"
    assert suite.judge(problem, Answer("    return sum(a)", whole=True), run).verdict == "failed"


def test_a_failure_says_why(tmp_path: Path, run: Run) -> None:
    suite = HumanEval()
    (problem,) = problems(suite, tmp_path, ADD)
    detail = suite.judge(problem, Answer("    return 3"), run).detail
    assert "AssertionError" in detail
    assert "assert candidate([]) == 0" in suite.judge(problem, Answer("    return 3"), run).detail


def test_options_that_the_suite_does_not_have() -> None:
    with pytest.raises(UsageError, match="no variants"):
        HumanEval(SuiteOptions(variant="fix"))
    with pytest.raises(UsageError, match="in Python alone"):
        HumanEvalPlus(SuiteOptions(language="rust"))
    HumanEval(SuiteOptions(language="python"))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**ADD, "test": None}, "'test' must be text, not null"),
        ({name: value for name, value in ADD.items() if name != "prompt"}, "has no field 'prompt'"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(CodemillError, match=f"line 2: .*{message}"):
        problems(HumanEval(), tmp_path, {**ADD, "task_id": "x"}, record)


def test_the_homes_are_public() -> None:
    assert str(HumanEval().source().url).endswith("/data/HumanEval.jsonl.gz")
    assert str(HumanEvalPlus().source().url).endswith("/HumanEvalPlus.jsonl.gz")


# HumanEval+


def test_both_plus_formats_and_gzip(tmp_path: Path, run: Run) -> None:
    for name, record in (("HumanEvalPlus-v0.1.10.jsonl.gz", PLUS), ("humanevalplus.jsonl", ON_THE_HUB)):
        suite = HumanEvalPlus()
        data = (json.dumps(record) + "\n").encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        (problem,) = suite.load(path)
        gold = suite.gold(problem)
        assert gold is not None
        assert suite.judge(problem, gold, run).verdict == "ok"
        assert suite.judge(problem, Answer("    return sum(a, 1)"), run).verdict == "failed"
        assert suite.judge(problem, Answer("    import sys\n    sys.exit()"), run).verdict == "failed"
        assert suite.judge(problem, Answer("def add(a):\n    return sum(a)", whole=True), run).verdict == "ok"


@pytest.mark.parametrize(
    "name", [name for name in ANSWERS if name not in ("prints too much", "its own check", "loops")]
)
def test_plus_answers_of_all_kinds(tmp_path: Path, run: Run, name: str) -> None:
    suite, problem = plus(tmp_path)
    text, verdict = ANSWERS[name]
    judgement = suite.judge(problem, Answer(text), run)
    assert judgement.verdict == verdict or (name == "deeply nested" and judgement.verdict != "ok"), judgement


def test_what_a_plus_solution_prints_does_not_count(tmp_path: Path, run: Run) -> None:
    suite, problem = plus(tmp_path)
    assert suite.judge(problem, Answer("    print('x' * 3_000_000)\n    return sum(a)"), run).verdict == "ok"


def test_base_and_plus_inputs_both_count(tmp_path: Path, run: Run) -> None:
    suite, problem = plus(tmp_path)
    only_base = suite.judge(problem, Answer("    return sum(a) % 10**6"), run)
    assert only_base.verdict == "failed"
    assert "plus input 0: 999999 instead of 99999999999999999999" in only_base.detail
    assert suite.judge(problem, Answer("    return sum(a) if len(a) == 1 else 10**20 - 1"), run).verdict == "failed"


def test_an_endless_solution_ends_soon(tmp_path: Path, run: Run) -> None:
    """Also one that catches everything: the limit of an input is one second of CPU time."""
    suite, problem = plus(tmp_path)
    stubborn = "    while True:\n        try:\n            while True: pass\n        except Exception: pass"
    for text in ("    while True: pass", stubborn):
        judgement = suite.judge(problem, Answer(text), run)
        assert judgement.verdict == "timeout"
        assert "base input 0: no output after 1.0 s of CPU time" in judgement.detail


def test_a_slow_reference_gives_more_time(tmp_path: Path, run: Run) -> None:
    busy = (
        "    import time\n    end = time.process_time() + {}\n    while time.process_time() < end: pass\n    return 1\n"
    )
    suite, problem = plus(tmp_path, canonical_solution=busy.format(0.3), base_input=[[[]]], plus_input=[])
    assert suite.judge(problem, Answer(busy.format(1.05)), run).verdict == "ok"
    assert suite.judge(problem, Answer(busy.format(3.0)), run).verdict == "timeout"


def test_a_broken_reference_is_not_the_answers_fault(tmp_path: Path, run: Run) -> None:
    suite, problem = plus(tmp_path, canonical_solution="    raise KeyError('gone')\n")
    judgement = suite.judge(problem, Answer("    return sum(a)"), run)
    assert judgement.verdict == "harness error"
    assert "the suite's own solution fails" in judgement.detail
    assert "KeyError: 'gone'" in judgement.detail


def test_the_reference_runs_once(tmp_path: Path, run: Run) -> None:
    suite, problem = plus(tmp_path)
    jobs: list[object] = []

    def counted(job: Any) -> Any:
        jobs.append(job)
        return run(job)

    for _ in range(3):
        assert suite.judge(problem, Answer("    return sum(a)"), counted).verdict == "ok"
    assert len(jobs) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_input": {}}, "'base_input' must be a list"),
        ({"atol": "0"}, "'atol' must be a number"),
        ({"plus_input": None}, "'plus_input' must be a list, not null"),
    ],
)
def test_bad_plus_records_are_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(CodemillError, match=f"line 1: {message}"):
        plus(tmp_path, **changes)


def test_a_plus_record_without_tests_is_named(tmp_path: Path) -> None:
    with pytest.raises(CodemillError, match="line 1: the record has neither 'plus_input' nor 'test'"):
        problems(HumanEvalPlus(), tmp_path, {name: value for name, value in ADD.items() if name != "test"})


TASK = {"dataset": "humaneval", "entry_point": "f"}
NAN = float("nan")


@pytest.mark.parametrize(
    ("output", "expected", "atol", "agrees"),
    [
        (1, 1, 0, True),
        (1, True, 0, True),
        (1.0, 1, 0, True),
        ((1,), [1], 0, False),
        ("a", "b", 0, False),
        (0.1 + 0.2, 0.3, 1e-6, True),
        (0.3 + 1e-5, 0.3, 1e-6, False),
        ([0.1 + 0.2], [0.3], 1e-6, True),
        ([0.1 + 0.2], (0.3,), 1e-6, False),
        ([0.1 + 0.2, 1.0], [0.3], 1e-6, False),
        ([[0.1 + 0.2], [1]], [[0.3], [1]], 1e-6, True),
        (1e20, 1e20 + 1e12, 1e-6, True),  # relative 1e-7
        (float("inf"), float("inf"), 1e-6, True),
        (float("inf"), 1.0, 1e-6, False),
        (NAN, NAN, 1e-6, False),
        (1 + 1e-9j, 1 + 0j, 1e-6, True),
    ],
)
def test_outputs_are_compared_as_evalplus_does(output: object, expected: object, atol: float, agrees: bool) -> None:
    assert evalplus_checker.agrees(TASK, (), output, expected, atol) is agrees


def test_a_float_makes_all_later_outputs_approximate() -> None:
    expected = [evalplus_checker.Expected(0.3, 0.0), evalplus_checker.Expected([1, 2.0], 0.0)]
    outputs = iter([0.1 + 0.2, [1, 2.0 + 1e-9]])
    task = {**TASK, "atol": 0, "base": [(), ()], "plus": [()]}
    evalplus_checker.check(lambda: next(outputs), task, "base", expected)
    outputs = iter([[1, 2.0 + 1e-9]])
    with pytest.raises(AssertionError, match=r"plus input 0: .* instead of \[1, 2.0\]"):
        evalplus_checker.check(lambda: next(outputs), task, "plus", expected[1:])


def test_a_root_is_right_where_the_polynomial_vanishes(tmp_path: Path, run: Run) -> None:
    """Also if the solution changes its input."""
    suite, problem = plus(
        tmp_path,
        prompt="def find_zero(xs: list):\n",
        entry_point="find_zero",
        canonical_solution="    return 1.0\n",
        base_input=[[[-1, 0, 1]]],
        plus_input=[],
        atol=1e-4,
    )
    for text, verdict in (
        ("    return -1.0", "ok"),
        ("    xs.clear()\n    return 1", "ok"),
        ("    return 0.9", "failed"),
    ):
        assert suite.judge(problem, Answer(text), run).verdict == verdict


def test_many_plus_problems_at_a_time(shared_data: Path, tmp_path: Path, run: Run) -> None:
    """HumanEval's own functions in EvalPlus's format, on inputs that fit many of them."""
    suite = HumanEvalPlus()
    records = []
    for problem in HumanEval().load(shared_data / "humaneval"):
        fields = problem.fields
        if re.search(rf"def {fields['entry_point']}\(n(?:: int)?\)", fields["prompt"]):
            plain = {name: value for name, value in fields.items() if name != "test"}
            records.append({**plain, "base_input": [[2]], "plus_input": [[3], [8]], "atol": 0})
    loaded = problems(suite, tmp_path, *records)
    assert len(loaded) > 12
    judged = judge_all(suite, loaded, suite.gold, run)
    assert {judgement.verdict for judgement in judged.values()} == {"ok"}
    wrong = judge_all(suite, loaded, lambda _: Answer("    return 'wrong'"), run)
    assert {judgement.verdict for judgement in wrong.values()} == {"failed"}


def test_humaneval_s_own_tests_are_not_taken_for_those_of_the_plus_suite(tmp_path: Path) -> None:
    with pytest.raises(CodemillError, match="line 1: not EvalPlus's tests"):
        problems(HumanEvalPlus(), tmp_path, ADD)
    assert len(problems(HumanEvalPlus(), tmp_path, ON_THE_HUB)) == 1
