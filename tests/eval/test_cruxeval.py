"""CRUXEval: prompts, what of an answer is the prediction, and what passes."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.eval.cruxeval import CruxEval, predicted
from codemill.eval.suite import Answer, Problem, Run, SuiteOptions
from codemill.sandbox.job import Job, Limits
from codemill.sandbox.result import RunResult

OUTPUT, INPUT = CruxEval(), CruxEval(SuiteOptions(variant="input"))
DOUBLE = {
    "id": "sample_0",
    "code": "def f(xs, n=1):\n    return xs * (n + 1)",
    "input": "[1, 2]",
    "output": "[1, 2, 1, 2]",
}
PROBLEM = Problem("sample_0", DOUBLE)


def verdict(suite: CruxEval, answer: str, run: Run, problem: Problem = PROBLEM) -> str:
    return suite.judge(problem, Answer(answer), run).verdict


def test_base_prompts() -> None:
    prompt = OUTPUT.prompt(PROBLEM, "base")
    assert prompt.text is not None
    assert prompt.text.endswith(f"[PYTHON]\n{DOUBLE['code']}\nassert f([1, 2]) == ??\n[/PYTHON]\n[ANSWER]\n")
    assert prompt.text.count("[ANSWER]\n") == 3
    assert prompt.stop == ("[/ANSWER]",)
    prompt = INPUT.prompt(PROBLEM, "base")
    assert prompt.text is not None
    assert f"{DOUBLE['code']}\nassert f(??) == [1, 2, 1, 2]\n" in prompt.text
    assert "assert f([1, 2])" not in prompt.text


def test_chat_prompts_and_braces_in_the_code() -> None:
    code = "def f(d):\n    return f'{d} {input}' + '{output}'"
    prompt = OUTPUT.prompt(Problem("x", {**DOUBLE, "code": code}), "chat")
    assert prompt.messages is not None
    assert code in prompt.messages[0]["content"]
    assert prompt.messages[0]["content"].endswith("[/PYTHON]\n")


@pytest.mark.parametrize(
    ("raw", "output", "given"),
    [
        ("assert f([1, 2]) == [3]", "[3]", "f([1, 2])"),
        ("assert f([1, 2]) == [3]\n[/ANSWER]\n\n[PYTHON]\ndef f(): ...\n[ANSWER]\nassert f() == 9", "[3]", "f([1, 2])"),
        ("It doubles.\n[ANSWER]\nassert f([1, 2]) == [3]\n[/ANSWER]", "[3]", "f([1, 2])"),
        ("<think>\nassert f(1) == 2\n</think>\n[ANSWER]assert f([1, 2]) == [3][/ANSWER]", "[3]", "f([1, 2])"),
        ("Here:\n```python\nassert f([1, 2]) == [3]  # done\n```\nThat is all.", "[3]", "f([1, 2])"),
        ("f([1, 2]) == [3]", "[3]", "f([1, 2])"),
        ("assert f([1, 2]) == [3], 'a message'", "[3]", "f([1, 2])"),
        ("assert (f([1, 2]) == [3])", "[3]", "f([1, 2])"),
        ("assert f('a == b') == 'c == \\'d'", "'c == \\'d'", "f('a == b')"),
        ("assert f(\n    [1,\n     2]\n) == [\n    3]", "[\n    3]", "f(\n    [1,\n     2]\n)"),
        ('assert f("""x\n#""", y=2) == {"#": 1}  # why', '{"#": 1}', 'f("""x\n#""", y=2)'),
    ],
)
def test_the_prediction_in_an_answer(raw: str, output: str, given: str) -> None:
    assert predicted(raw, wants_input=False) == output
    assert predicted(raw, wants_input=True) == given
    assert predicted(output, wants_input=False) == output  # cleaning twice changes nothing
    assert predicted(given, wants_input=True) == given


def test_a_bare_prediction() -> None:
    assert predicted("[3]\n\n[PYTHON]\nmore", wants_input=False) == "[3]"
    assert predicted("I think:\n`[3]`", wants_input=False, last=True) == "[3]"
    assert predicted("'assert x == 1'", wants_input=False) == "'assert x == 1'"
    assert predicted("", wants_input=False) == ""
    assert predicted("f([1, (", wants_input=True) == "f([1, ("


@pytest.mark.parametrize(
    "answer", ["[1, 2, 1, 2]", "[1, 2] * 2", "list((1, 2, 1, 2))", "assert f([1, 2]) == [1, 2, 1, 2]"]
)
def test_right_outputs(answer: str, run: Run) -> None:
    assert verdict(OUTPUT, answer, run) == "ok"


@pytest.mark.parametrize(
    "answer",
    [
        *("[1, 2]", "(1, 2, 1, 2)", "f([1, 2])", "f( [1,2] )", "(lambda g: g([1, 2]))(f)", "eval('f([1, 2])')", "??"),
        *(
            "",
            "1 +",
            "xs * 2",
            "__import__('os')._exit(0)",
            "exit()",
            "(yield)",
            "\0",
            "'\udc80",
        ),
        "type('E', (), {'__eq__': lambda a, b: True})()",
        "().__class__.__base__.__subclasses__()",
        "(x for x in [1]).gi_frame.f_back",
        "[" * 5_000,
        "-" * 90_000 + "1",
        "9" * 200_000,
    ],
)
def test_wrong_outputs(answer: str, run: Run) -> None:
    assert verdict(OUTPUT, answer, run) == "failed"


def test_an_endless_expression(run: Run) -> None:
    def hurried(job: Job) -> RunResult:
        return run(replace(job, limits=Limits(cpu_seconds=0.5)))

    assert verdict(OUTPUT, "sum(1 for _ in iter(int, 1))", hurried) == "timeout"
    assert verdict(OUTPUT, "list(range(10 ** 12))", hurried) == "memory"


def test_values_that_are_written_with_names(run: Run) -> None:
    code = "from collections import Counter\ndef f(s):\n    return Counter(s), float('inf')"
    problem = Problem("x", {**DOUBLE, "code": code, "input": "'aab'", "output": "({'a': 2, 'b': 1}, float('inf'))"})
    assert verdict(OUTPUT, "(Counter({'a': 2, 'b': 1}), inf)", run, problem) == "ok"
    assert verdict(OUTPUT, "(Counter({'a': 2}), inf)", run, problem) == "failed"


@pytest.mark.parametrize(
    "answer", ["f([1, 2])", "f([1], n=3 if 0 else 1) or f", "f([1] + [2])", "f(*[[1, 2]])", "f((lambda: [1, 2])())"]
)
def test_inputs(answer: str, run: Run) -> None:
    expected = "failed" if " or " in answer else "ok"
    assert verdict(INPUT, answer, run) == expected


@pytest.mark.parametrize(
    "answer",
    [
        *("f([1])", "[1, 2]", "", "f(", "g([1, 2])", "[f([1]), [1, 2, 1, 2]][1]", "f([1, 2]) if f else 0"),
        *(
            "f(f([1]) and [1, 2])",
            "f([1, 2]) or 1",
            "[1, 2, 1, 2]",
            "f(__builtins__)",
            "f(exit())",
            "f.__call__([1, 2])",
        ),
    ],
)
def test_wrong_inputs(answer: str, run: Run) -> None:
    assert verdict(INPUT, answer, run) == "failed"


def test_inputs_may_use_what_the_code_defines(run: Run) -> None:
    code = "words = ['a', 'b']\ndef f(x):\n    return len(x)"
    problem = Problem("x", {**DOUBLE, "code": code, "input": "words[:]", "output": "2"})
    assert verdict(INPUT, "f(words[:])", run, problem) == "ok"


def test_a_record_that_is_wrong_fails_its_gold(run: Run) -> None:
    problem = Problem("x", {**DOUBLE, "output": "[1, 2]"})
    for suite in (OUTPUT, INPUT):
        gold = suite.gold(problem)
        assert gold is not None
        assert suite.judge(problem, gold, run).verdict == "failed"


def test_data_without_a_field(tmp_path: Path) -> None:
    file = tmp_path / "cruxeval.jsonl"
    file.write_text(json.dumps(DOUBLE) + "\n" + json.dumps({"id": "sample_1", "code": ""}) + "\n")
    with pytest.raises(CodemillError, match="line 2: the record has no field 'input'"):
        OUTPUT.load(file)


def test_unknown_variant() -> None:
    with pytest.raises(UsageError, match="output and input"):
        CruxEval(SuiteOptions(variant="both"))


def all_gold(suite: CruxEval, problems: list[Problem], run: Run) -> list[str]:
    """The verdicts on the gold answers."""
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda problem: verdict(suite, suite.gold(problem).text, run, problem), problems))  # type: ignore[union-attr]


def test_gold_of_a_sample(shared_data: Path, run: Run) -> None:
    problems = OUTPUT.load(shared_data / "cruxeval")
    assert len(problems) == 800
    for suite in (OUTPUT, INPUT):
        assert all_gold(suite, problems[::40], run) == ["ok"] * 20
        for problem in problems:  # what a model that says the same would be taken to say
            call, output = f"f({problem.fields['input']})", problem.fields["output"]
            gold = suite.gold(problem)
            assert gold == suite.clean(problem, f"assert {call} == {output}\n[/ANSWER]\n", "base")
            assert gold == suite.clean(problem, f"Sure.\n[ANSWER]\nassert {call} == {output}\n[/ANSWER]", "chat")


@pytest.mark.slow
def test_gold_of_all(shared_data: Path, run: Run) -> None:
    problems = OUTPUT.load(shared_data / "cruxeval")
    for suite in (OUTPUT, INPUT):
        assert all_gold(suite, problems, run) == ["ok"] * 800
