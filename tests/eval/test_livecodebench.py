"""LiveCodeBench: its records and their packed tests, prompts, and judging on standard input and through functions."""

import base64
import gzip
import json
import pickle
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.eval.livecodebench import LiveCodeBench, output_fault, same_value
from codemill.eval.livecodebench_tests import decode, read_tests
from codemill.eval.suite import Answer, Problem, Run, SuiteOptions
from codemill.sandbox.job import Job, Limits
from codemill.sandbox.result import RunResult

SUITE = LiveCodeBench()


def packed(value: Any) -> str:
    """As the authors pack private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def case(given: str, wanted: str, kind: str = "stdin") -> dict[str, str]:
    return {"input": given, "output": wanted, "testtype": kind}


SUM = {
    "question_title": "Sum",
    "question_content": "Print the sum of the numbers on the second line, and their mean.",
    "question_id": "abc_1",
    "starter_code": "",
    "public_test_cases": json.dumps([case("3\n1 2 3\n", "6 2\n")]),
    "private_test_cases": packed(json.dumps([case("2\n1 2\n", "3 1.5"), case("1\n1", "1 1.0000\n")])),
    "metadata": "{}",
    "solution": "import sys\nsys.stdin.readline()\nxs = list(map(int, input().split()))\n"
    "print(sum(xs), sum(xs) / len(xs))\n",
}
PAIRS = {
    "question_content": "Return all pairs of a list.",
    "question_id": 7,
    "starter_code": "class Solution:\n    def pairs(self, nums: List[int], sep: str) -> List[List[int]]:\n        ",
    "public_test_cases": json.dumps([case('[1, 2]\n"-"', "[[1, 2]]", "functional")]),
    "private_test_cases": packed(
        json.dumps(
            [case("[3]\n\"\"", "[]", "functional"), case('[1,2,3]\n""', "[[1,2],[1,3],[2,3]]", "functional")]
        )
    ),
    "metadata": json.dumps({"func_name": "pairs"}),
    "code": "class Solution:\n    def pairs(self, nums: List[int], sep: str) -> List[List[int]]:\n"
    "        return tuple(combinations(nums, 2))\n",
}  # fmt: skip
STDIN, FUNCTION = Problem("abc_1", SUM), Problem("7", PAIRS)


def verdict(problem: Problem, code: str, run: Run) -> str:
    return SUITE.judge(problem, Answer(code, whole=True), run).verdict


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_gold_from_a_file(tmp_path: Path, run: Run) -> None:
    file = write(tmp_path / "test6.jsonl", SUM, PAIRS)
    problems = SUITE.load(file)
    assert [problem.task_id for problem in problems] == ["abc_1", "7"]
    for problem in problems:
        gold = SUITE.gold(problem)
        assert gold is not None
        assert SUITE.judge(problem, gold, run).verdict == "ok"
    assert SUITE.gold(Problem("x", {**SUM, "solution": None})) is None
    (tmp_path / "more.jsonl.gz").write_bytes(gzip.compress(json.dumps({**SUM, "question_id": "b"}).encode()))
    assert [problem.task_id for problem in SUITE.load(tmp_path)] == ["b", "abc_1", "7"]


@pytest.mark.parametrize(
    "code",
    [
        "n = int(input()); xs = [int(x) for x in input().split()]; print(sum(xs), mean(xs))",  # names without import
        "from __future__ import annotations\nimport sys\n_, *xs = map(int, sys.stdin.read().split())\n"
        "sys.stdout.write(f'{sum(xs)}   {sum(xs) / len(xs):.7f}  \\n\\n')\nsys.exit(0)",
        "def main():\n    xs = [*map(int, open(0).read().split())][1:]\n    print(sum(xs), sum(xs) / len(xs))\n"
        "if __name__ == '__main__':\n    main()\n",
        "import sys, threading\ndef main():\n    xs = [*map(int, sys.stdin.buffer.read().split())][1:]\n"
        "    print(sum(xs), sum(xs) / len(xs))\nthreading.Thread(target=main).start()",
    ],
)
def test_right_programs(code: str, run: Run) -> None:
    assert verdict(STDIN, code, run) == "ok"


@pytest.mark.parametrize(
    "code",
    [
        # Right on the public test.
        "input(); xs = [int(x) for x in input().split()]; print(sum(xs), sum(xs) // len(xs))",
        "print('6 2')",
        "print(*map(int, input().split()))",
        "raise SystemExit(0)",
        "import os; print('6 2', flush=True); os._exit(0)",
        "def f(:",
        "",
        "\0",
        "print('\udc80')",
    ],
)
def test_wrong_programs(code: str, run: Run) -> None:
    assert verdict(STDIN, code, run) == "failed"


def test_the_failing_test_is_named(run: Run) -> None:
    judgement = SUITE.judge(STDIN, Answer("print('6 2')", whole=True), run)
    assert judgement.detail == "test 2 of 3: line 1 of the output is '6 2' instead of '3 1.5'"
    judgement = SUITE.judge(FUNCTION, Answer("def pairs(nums, sep):\n    return [[1, 2]]", whole=True), run)
    assert judgement.detail == "test 2 of 3: it returns [[1, 2]] instead of []"
    judgement = SUITE.judge(FUNCTION, Answer("def pairs(nums):\n    return 1 / 0", whole=True), run)
    assert judgement.detail.startswith("test 1 of 3: ")
    assert "TypeError" in judgement.detail


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def pairs(nums, sep):\n    return [list(p) for p in itertools.combinations(nums, 2)]", "ok"),
        ("class Solution:\n    def pairs(self, nums, sep):\n        return combinations(nums, 2)", "failed"),  # no list
        ("class Solution:\n    def other(self, nums, sep):\n        return []", "failed"),
        ("class Solution:\n    def pairs(self, nums, sep):\n        return []", "failed"),
        (
            "class E(list):\n    def __eq__(self, o):\n        return True\ndef pairs(nums, sep):\n    return E()",
            "failed",
        ),
        ("import json\njson.dump = lambda *a, **k: None\ndef pairs(nums, sep):\n    return 1", "failed"),
        ("def pairs(nums, sep):\n    raise SystemExit", "failed"),
        ("import os\ndef pairs(nums, sep):\n    os._exit(0)", "failed"),
    ],
)
def test_functions(code: str, expected: str, run: Run) -> None:
    assert verdict(FUNCTION, code, run) == expected


def test_what_is_expected_is_not_in_the_sandbox(run: Run) -> None:
    """Neither in the files nor in the memory of the process."""
    seen: list[Job] = []

    def watched(job: Job) -> RunResult:
        seen.append(job)
        return run(job)

    marked = {**PAIRS, "public_test_cases": [case("[1]\n1", '"zebra"', "functional")], "private_test_cases": []}
    assert verdict(Problem("x", marked), "def pairs(a, b):\n    return 'zebr' + chr(97)", watched) == "ok"
    (job,) = seen
    assert job.source is not None
    assert b"zebra" not in job.source + job.stdin + b"".join(job.files.values())


def test_limits(run: Run) -> None:
    def hurried(job: Job) -> RunResult:
        return run(replace(job, limits=Limits(cpu_seconds=0.5)))

    assert verdict(STDIN, "while True: pass", hurried) == "timeout"
    large = {**SUM, "public_test_cases": [case("", "x" * 3_000_000)], "private_test_cases": "[]"}
    assert verdict(Problem("x", large), "print('x' * 3_000_000)", run) == "ok"
    assert verdict(Problem("x", large), "while True: print('x' * 3_000_000)", run) == "output limit"


@pytest.mark.parametrize(
    ("output", "wanted", "is_right"),
    [
        ("1 2\n3\n", "1 2\n3", True),
        (" 1   2 \n3  ", "1 2\n3\n\n", True),
        ("1 2 3", "1 2\n3", False),
        ("1\n2", "1", False),
        ("YES", "Yes", False),
        ("a  b", "a b", True),
        ("1.0", "1", True),
        ("1e3", "1000", True),
        ("2", "1", False),
        ("0.3333333", "0.333333333333", True),
        ("0.333", "0.333333333333", False),
        ("1000000000000000001", "1000000000000000000", False),
        ("Case 1: 0.50", "Case 1: 0.5", True),
        ("nan", "nan", True),
        ("inf", "1.5", False),
        ("", "", True),
        ("", "0", False),
    ],
)
def test_outputs(output: str, wanted: str, is_right: bool) -> None:
    assert (output_fault(output, wanted) == "") == is_right


def test_values() -> None:
    assert same_value([1, [2.0000000001, "a"], {"x": None}], [1, [2.0, "a"], {"x": None}])
    assert same_value({"a": 1, "b": 2.0}, {"b": 2, "a": 1})
    for other in ([1], [1, 3], (1, 2), "12", None, [1, 2.1]):
        assert not same_value(other, [1, 2])


class Evil:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("open('/tmp/never', 'w')",)


def test_forms_of_tests() -> None:
    cases = [case("1", "2"), {"input": "3", "output": "4"}]
    forms = [cases, json.dumps(cases), packed(json.dumps(cases))]
    assert [len(decode(form)) for form in forms] == [2, 2, 2]
    assert len({decode(form) for form in forms}) == 1
    assert [
        test.input for test in read_tests({"public_test_cases": cases, "private_test_cases": packed(json.dumps(cases))})
    ] == [*("1", "3", "1", "3")]


@pytest.mark.parametrize(
    "value",
    [
        packed(Evil()),
        packed({"a": print}),
        packed([case("1", "2")]),  # not as a text
        packed("no JSON"),
        packed(json.dumps({"input": "1"})),
        base64.b64encode(b"not compressed").decode(),
        base64.b64encode(zlib.compress(b"no pickle")).decode(),
        "no base64!",
        json.dumps([{"input": 1, "output": "x"}]),
        json.dumps([case("", "", "graphical")]),
        "[" * 100_000,
    ],
)
def test_tests_that_cannot_be_read(value: str, run: Run) -> None:
    with pytest.raises(CodemillError, match="the tests cannot be read"):
        decode(value)
    judgement = SUITE.judge(Problem("x", {**SUM, "private_test_cases": value}), Answer("", whole=True), run)
    assert judgement.verdict == "harness error"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question_content": None}, "'question_content' must be text"),
        ({"public_test_cases": 3}, "'public_test_cases' must be text or a list"),
        ({"public_test_cases": "[{}]"}, "line 2: public_test_cases: the tests cannot be read: a test has no input"),
        ({"private_test_cases": "?!"}, "line 2: private_test_cases is neither JSON nor compressed"),
        ({"question_id": "abc_1"}, "line 2: question_id 'abc_1' is also that of line 1"),
        ({"public_test_cases": [case("", "", "functional")]}, "line 2: the tests call a function"),
    ],
)
def test_faulty_records(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = write(tmp_path / "test.jsonl", SUM, {**SUM, "question_id": "b", **change})
    with pytest.raises(CodemillError) as error:
        SUITE.load(file)
    assert said in str(error.value)


def test_the_same_problem_in_two_files(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", SUM)
    write(tmp_path / "test2.jsonl", SUM)
    with pytest.raises(CodemillError, match="is also in another file"):
        SUITE.load(tmp_path)


def test_prompts() -> None:
    for problem, starter in ((STDIN, ""), (FUNCTION, PAIRS["starter_code"])):
        chat, base = SUITE.prompt(problem, "chat"), SUITE.prompt(problem, "base")
        assert chat.messages is not None
        assert base.text is not None
        for text in (chat.messages[1]["content"], base.text):
            assert problem.fields["question_content"] in text
            assert str(starter) in text
        assert base.text.endswith("### Answer\n\n")
        assert base.text.count("### Question") == 2
    assert chat.messages[0]["role"] == "system"


def test_cleaning() -> None:
    answer = "First\n```python\nx = 1\n```\nBetter:\n```python\nx = 2\n```\nRun it:\n```bash\npython x.py\n```\n"
    assert SUITE.clean(STDIN, answer, "chat") == Answer("x = 2\n", whole=True)
    assert SUITE.clean(STDIN, "<think>\n```python\nx = 0\n```\n</think>\nprint(1)", "chat").text == "print(1)"
    assert SUITE.clean(STDIN, "print(1)\n\n### Question\nmore", "base").text == "print(1)"


def test_where_it_comes_from() -> None:
    assert SUITE.source().filename == "test6.jsonl"
    assert LiveCodeBench(SuiteOptions(variant="v1")).source().filename == "test.jsonl"
    for options in (SuiteOptions(variant="v7"), SuiteOptions(language="cpp")):
        with pytest.raises(UsageError):
            LiveCodeBench(options)
