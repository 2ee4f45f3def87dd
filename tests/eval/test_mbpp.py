"""MBPP in the authors' files and others' forms, and MBPP+ in both of EvalPlus's."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.eval.mbpp import Mbpp, MbppPlus
from codemill.eval.suite import Answer, Problem, Run, SuiteOptions
from eval.verdicts import judge_all, verdicts

FULL = {
    "text": "Write a function to add.",
    "code": "class Pair:\r\n  def __init__(self, a):\r\n    self.a = a\r\ndef add(p):\r\n  return p.a + 1",
    "task_id": 7,
    "test_setup_code": "one = Pair(1)\r\n",
    "test_list": ["assert add(one) == 2", "assert add(Pair(2)) == 3"],
    "challenge_test_list": ["assert add(one) == 99"],
}
SANITIZED = {
    "source_file": "x.ipynb",
    "task_id": 8,
    "prompt": "Write a function for the area.",
    "code": "def area(r):\n  return 3.14 * r * r",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(area(1), 3.14)", "assert area(2) == 12.56"],
}
PLUS = {
    "task_id": "Mbpp/2",
    "prompt": '"""\nWrite a function to find what is shared.\nassert similar((1, 2), (2, 3)) == (2,)\n"""\n',
    "entry_point": "similar",
    "canonical_solution": "\ndef similar(a, b):\n  assert type(a) is tuple\n  return tuple(sorted(set(a) & set(b)))\n",
    "base_input": [[[1, 2], [2, 3]]],
    "plus_input": [[[], []], [[5, 4], [4, 5]]],
    "atol": 0,
    "contract": "",
    "assertion": "assert similar((1, 2), (2, 3)) == (2,)",
}
CHECKS = (
    "import numpy as np\n\ndef assertion(out, exp, atol):\n    if out != exp:\n"
    "        np.testing.assert_allclose(out, exp, atol=atol)\n\n\ninputs = [[1], [2]]\nresults = [3.14, 12.56]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion({}(*inp), exp, 1e-6)\n"
)


def one(suite: Mbpp, tmp_path: Path, record: dict[str, Any]) -> Problem:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record))
    (problem,) = suite.load(path)
    return problem


@pytest.mark.parametrize(
    ("name", "count"),
    [("mbpp.jsonl", 974), ("sanitized-mbpp.json", 427), ("mbpp_sanitized_for_code_generation.jsonl", 427)],
)
def test_gold_solutions_pass(shared_data: Path, run: Run, name: str, count: int) -> None:
    suite = Mbpp()
    loaded = suite.load(shared_data / "mbpp" / name)
    assert len(loaded) == count
    chosen = [problem for i, problem in enumerate(loaded) if i % 8 == 0 or problem.fields.get("test_setup_code")]
    assert verdicts(suite, chosen, suite.gold, run) == {"ok": len(chosen)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mbpp.jsonl", "sanitized-mbpp.json", "mbpp_sanitized_for_code_generation.jsonl"])
def test_all_gold_solutions_pass(shared_data: Path, run: Run, name: str) -> None:
    suite = Mbpp()
    loaded = suite.load(shared_data / "mbpp" / name)
    assert verdicts(suite, loaded, suite.gold, run) == {"ok": len(loaded)}


@pytest.mark.parametrize("variant", ["full", "sanitized"])
@pytest.mark.parametrize("style", ["base", "chat"])
def test_gold_solutions_survive_cleaning(shared_data: Path, run: Run, variant: str, style: Any) -> None:
    suite = Mbpp(SuiteOptions(variant=variant))
    loaded = suite.load(shared_data / "mbpp")[3::12]

    def answer(problem: Problem) -> Answer:
        use = "\n".join(problem.fields["test_list"])
        code = f"{problem.fields['code']}\n\n{use}\nprint('done')\n"
        return suite.clean(problem, code if style == "base" else f"Here:\n```python\n{code}```\n", style)

    assert verdicts(suite, loaded, answer, run) == {"ok": len(loaded)}


def test_the_variant_chooses_what_is_fetched_and_read(shared_data: Path) -> None:
    assert str(Mbpp().source().url).endswith("/mbpp/sanitized-mbpp.json")
    assert str(Mbpp(SuiteOptions(variant="full")).source().url).endswith("/mbpp/mbpp.jsonl")
    assert len(Mbpp(SuiteOptions(variant="full")).load(shared_data / "mbpp")) == 974
    assert len(Mbpp(SuiteOptions(variant="sanitized")).load(shared_data / "mbpp" / "mbpp.jsonl")) == 974
    with pytest.raises(UsageError, match="it has sanitized and full"):
        Mbpp(SuiteOptions(variant="large"))
    with pytest.raises(UsageError, match="mbpp\\+ has no variants"):
        MbppPlus(SuiteOptions(variant="full"))
    with pytest.raises(UsageError, match="in Python alone"):
        Mbpp(SuiteOptions(language="go"))


def test_setup_follows_the_solution_and_challenges_do_not_count(tmp_path: Path, run: Run) -> None:
    problem = one(Mbpp(), tmp_path, FULL)
    assert problem.task_id == "7"
    gold = Mbpp().gold(problem)
    assert gold is not None
    assert Mbpp().judge(problem, gold, run).verdict == "ok"
    assert Mbpp().judge(problem, Answer(gold.text.replace("+ 1", "+ 2")), run).verdict == "failed"


def test_imports_of_the_tests(tmp_path: Path, run: Run) -> None:
    problem = one(Mbpp(), tmp_path, SANITIZED)
    assert Mbpp().judge(problem, Answer("def area(r): return 3.14 * r * r"), run).verdict == "ok"
    future = "from __future__ import annotations\ndef area(r: Unknown): return 3.14 * r * r"
    assert Mbpp().judge(problem, Answer(future), run).verdict == "ok"


def test_prompts_show_the_task_and_the_tests(tmp_path: Path) -> None:
    problem = one(Mbpp(), tmp_path, SANITIZED)
    base = Mbpp().prompt(problem, "base")
    assert base.text == f'"""\n{SANITIZED["prompt"]}\n{SANITIZED["test_list"][0]}\n"""\n'
    assert "\nassert" in base.stop
    (message,) = Mbpp().prompt(problem, "chat").messages or ()
    assert SANITIZED["prompt"] in message["content"]
    assert all(test in message["content"] for test in SANITIZED["test_list"])


ANSWERS = {
    "empty": ("", "failed"),
    "exits": ("def area(r): return 3.14 * r * r\nimport sys\nsys.exit(0)", "failed"),
    "exits at once": ("import os\ndef area(r): os._exit(0)", "failed"),
    "NUL": ("def area(r): return 3.14 * r * r # \0", "failed"),
    "twice": ("def area(r): return 0\ndef area(r): return 3.14 * r * r", "ok"),
    "prints": ("def area(r):\n    print('x' * 50_000_000)\n    return 3.14 * r * r", "output limit"),
    "surrogate": ("x = '\udcff'\ndef area(r): return 3.14 * r * r", "failed"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_of_all_kinds(tmp_path: Path, run: Run, name: str) -> None:
    text, verdict = ANSWERS[name]
    assert Mbpp().judge(one(Mbpp(), tmp_path, SANITIZED), Answer(text), run).verdict == verdict


def test_functions_to_be_completed(shared_data: Path, run: Run) -> None:
    suite = Mbpp()
    loaded = suite.load(shared_data / "mbpp" / "mbpp_sanitized_for_code_generation.jsonl")[:40]
    base = suite.prompt(loaded[0], "base")
    assert base.text == loaded[0].fields["prompt"]
    assert "Write a function" in str(suite.prompt(loaded[0], "chat").messages)

    def answer(problem: Problem) -> Answer:
        code = problem.fields["prompt"] + "    ...\n"  # only the last definition counts
        gold = suite.gold(problem)
        assert gold is not None
        return suite.clean(problem, f"```python\n{code}\n\n{problem.fields['prompt']}{gold.text}```", "chat")

    assert verdicts(suite, loaded, answer, run) == {"ok": 40}
    assert verdicts(suite, loaded, lambda _: Answer("    return object()"), run) == {"failed": 40}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**SANITIZED, "test_list": "assert 1"}, "'test_list' must be a list"),
        ({**SANITIZED, "test_list": [1]}, "'test_list' must be a list of texts"),
        ({**SANITIZED, "test_list": []}, "'test_list' is empty"),
        ({**SANITIZED, "code": None}, "'code' must be text"),
        ({"task_id": 1, "code": "x", "test_list": ["assert 1"]}, "has no field 'prompt'"),
        ({**PLUS, "test": 1}, "'test' must be text"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(CodemillError, match=rf"data\.jsonl, line 1: .*{message}"):
        one(Mbpp(), tmp_path, record)


# MBPP+


def test_evalplus_format(tmp_path: Path, run: Run) -> None:
    """JSON's lists become what the task takes."""
    suite = MbppPlus()
    problem = one(suite, tmp_path, PLUS)
    gold = suite.gold(problem)
    assert gold is not None
    wrong = "def similar(a, b):\n    return (2,)"
    as_list = "def similar(a, b):\n    return sorted(set(a) & set(b))"
    exits = "def similar(a, b):\n    raise SystemExit(0)"
    for text, verdict in ((gold.text, "ok"), (wrong, "failed"), (as_list, "failed"), (exits, "failed"), ("", "failed")):
        assert suite.judge(problem, Answer(text), run).verdict == verdict
        assert suite.judge(problem, Answer(text, whole=True), run).verdict == verdict
    assert suite.prompt(problem, "base").text == PLUS["prompt"]
    assert suite.clean(problem, f"{gold.text}\nassert 1\n", "base") == Answer(f"{gold.text}\n")


@pytest.mark.parametrize("called", ["area", "candidate"])
def test_format_of_the_hub(tmp_path: Path, run: Run, called: str) -> None:
    suite = MbppPlus()
    problem = one(suite, tmp_path, {**SANITIZED, "test": CHECKS.format(called)})
    gold = suite.gold(problem)
    assert gold is not None
    assert suite.judge(problem, gold, run).verdict == "ok"
    assert suite.judge(problem, Answer("def area(r): return 3 * r * r"), run).verdict == "failed"
    assert suite.judge(problem, Answer("def area(r): raise SystemExit"), run).verdict == "failed"


def test_tasks_with_several_right_answers(tmp_path: Path, run: Run) -> None:
    """Each record's own solution, and answers that are right in the way of that task."""
    cases = [
        ("Diff", "return [1, 2]", "return [2, 1, 1]", "return [1]"),
        ("check_str", "return 'x'", "return True", "return None"),
        ("check_str", "return None", "return False", "return 0"),
        ("are_equivalent", "return True", "return False", "raise KeyError"),
        ("sum_div", "return 5", "return 0", "return 6"),
        ("surface_Area", "return 33", "return 32", "return 34"),  # 32: with the height from the base, rounded
        ("digit_distance_nums", "return 7", "return 1", "return 8"),
    ]
    for number, (name, gold, other, wrong) in enumerate(cases):
        head = f"def {name}(a, b):\n    "
        record = {
            **PLUS,
            "task_id": f"Mbpp/{10_000 + number}",
            "entry_point": name,
            "canonical_solution": head + gold,
            "base_input": [[3, 4]] if name == "surface_Area" else [[1, 2]],
            "plus_input": [],
        }
        suite = MbppPlus()
        problem = one(suite, tmp_path, record)
        answers = {gold: "ok", other: "ok", wrong: "failed"}
        if name == "surface_Area":
            answers[other] = "failed"
            answers["return round(9 + 6 * (2.25 + 16) ** 0.5)"] = "ok"
        for text, verdict in answers.items():
            judgement = suite.judge(problem, Answer(head + text), run)
            assert judgement.verdict == verdict, (name, text, judgement)


def test_inputs_that_json_cannot_hold(tmp_path: Path, run: Run) -> None:
    cases = [
        (124, [["1", "2j"]], "type(a) is float and b == 2j"),
        (252, [["1+2j"]], "a == 1+2j"),
        (115, [[[[1, 1], []]]], "a == [{1}, {}]"),
        (63, [[[[1, 2], [3]]]], "a == [(1, 2), (3,)]"),
        (580, [[[1, [2, [3]]]]], "a == (1, (2, (3,)))"),
        (722, [[{"x": [1, 2]}, 3, 4]], "a == {'x': (1, 2)} and b == 3"),
        (106, [[[1], [2]]], "a == [1] and b == (2,)"),
        (278, [[[[1], 2]]], "a == ((1,), 2)"),
        (20_000, [[[1], [2]]], "a == [1] and b == [2]"),
    ]
    for number, inputs, test in cases:
        suite = MbppPlus()
        record = {
            **PLUS,
            "task_id": f"Mbpp/{number}",
            "entry_point": "f",
            "canonical_solution": f"\ndef f(a, b=None, c=None):\n    assert {test}\n    return 1\n",
            "base_input": inputs,
            "plus_input": [],
        }
        problem = one(suite, tmp_path, record)
        assert suite.judge(problem, Answer("def f(*_): return 1"), run).verdict == "ok", number


def test_records_of_the_other_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(CodemillError, match="line 1: the record has neither 'plus_input' nor 'test'"):
        one(MbppPlus(), tmp_path, SANITIZED)


def test_sanitized_tasks_in_evalplus_form(shared_data: Path, tmp_path: Path, run: Run) -> None:
    """Solutions of one number, on a few numbers."""
    records = []
    for problem in Mbpp().load(shared_data / "mbpp" / "sanitized-mbpp.json"):
        code = problem.fields["code"]
        takes_a_number = all(re.match(r"assert \w+\(\d+\) *==", test) for test in problem.fields["test_list"])
        if takes_a_number and code.startswith("def ") and code.count("def ") == 1:
            records.append(
                {
                    "task_id": f"Mbpp/{problem.task_id}",
                    "prompt": f'"""\n{problem.fields["prompt"]}\n"""\n',
                    "entry_point": code[4 : code.index("(")].strip(),
                    "canonical_solution": f"\n{code}\n",
                    "base_input": [[6]],
                    "plus_input": [[12], [10]],
                    "atol": 0,
                }
            )
    suite = MbppPlus()
    path = tmp_path / "MbppPlus.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    loaded = suite.load(tmp_path)
    assert len(loaded) > 10
    judged = judge_all(suite, loaded, suite.gold, run)
    assert {judgement.verdict for judgement in judged.values()} == {"ok"}, judged
