"""BFCL: the rules of the leaderboard's checker, the forms of answers, the data in its files."""

import json
from pathlib import Path
from typing import Any

import pytest

from codemill.chat.tool_types import ToolCall
from codemill.errors import CodemillError, UsageError
from codemill.eval.bfcl import Bfcl, parse_calls, tools
from codemill.eval.bfcl_match import call_fault, calls_fault, standardised
from codemill.eval.suite import Answer, Problem, SuiteOptions
from codemill.sandbox.job import Job
from codemill.sandbox.result import RunResult


def run(job: Job) -> RunResult:
    raise AssertionError("nothing is run")


def function(name: str = "shop.buy", required: tuple[str, ...] = ("item",), **types: Any) -> dict[str, Any]:
    properties = {
        key: kind if isinstance(kind, dict) else {"type": kind, "description": key} for key, kind in types.items()
    }
    return {
        "name": name,
        "description": "Buys.",
        "parameters": {"type": "dict", "properties": properties, "required": list(required)},
    }


def fault(kind: Any, acceptable: list[Any], value: Any) -> str:
    """The fault of one call with one argument."""
    described = function("f", ("x",), x=kind)
    return call_fault(described, {"f": {"x": acceptable}}, ToolCall("f", {"x": value}))


@pytest.mark.parametrize(
    ("kind", "acceptable", "value"),
    [
        ("integer", [5], 5),
        ("float", [5.0], 5),  # a whole number may stand for a float
        ("float", [5], 5.0),
        ("boolean", [True], True),
        ("string", ["New York, NY", "NYC"], "new york ny"),
        ("string", ["it's"], 'It"s'),
        ("string", ["2024-01-05"], "2024/01/05"),
        ("array", [[1, 2]], [1, 2]),
        ({"type": "array", "items": {"type": "string"}}, [["A b", "c"]], ["ab", "C"]),
        ({"type": "array", "items": {"type": "integer"}}, [[1, 2], [2, 1]], [2, 1]),
        ({"type": "tuple", "items": {"type": "float"}}, [[1.5, 2.0]], [1.5, 2.0]),
        ({"type": "array", "items": {"type": "integer"}}, [[1], ""], []),  # may be missing, so may be empty
        ({"type": "array", "items": {"type": "float"}}, ["data['sales']"], "data['sales']"),  # a variable
        ("any", ["my_data"], "my_data"),
        ("dict", [{"min": [3], "max": [9, ""]}], {"min": 3, "max": 9}),
        ("dict", [{"min": [3], "max": [9, ""]}], {"min": 3}),
        ("dict", [{"where": [{"city": ["Bonn"], "zip": [""]}]}], {"where": {"city": "bonn"}}),
        ("dict", ["", {"a": ["x y"]}], {"a": "XY"}),
        ({"type": "array", "items": {"type": "dict"}}, [[{"k": [1]}, {"k": [2]}]], [{"k": 1}, {"k": 2}]),
    ],
)
def test_acceptable_arguments(kind: Any, acceptable: list[Any], value: Any) -> None:
    assert fault(kind, acceptable, value) == ""


@pytest.mark.parametrize(
    ("kind", "acceptable", "value"),
    [
        ("integer", [5], 6),
        ("integer", [1], True),  # no integer
        ("integer", [5], "5"),
        ("integer", [5], 5.5),
        ("float", [5.0], "5.0"),
        ("boolean", [True], False),
        ("boolean", [True], "true"),
        ("string", ["Paris"], "London"),
        ("string", ["1"], 1),
        ("array", [[1, 2]], [2, 1]),
        ({"type": "array", "items": {"type": "float"}}, [[1.0, 2.0]], [1, 2.0]),  # not inside a list
        ({"type": "array", "items": {"type": "string"}}, [["a"]], ["a", "b"]),
        ("dict", [{"min": [3], "max": [9]}], {"min": 3}),
        ("dict", [{"min": [3]}], {"min": 3, "max": 9}),
        ("dict", [{"min": [3]}], {"min": 4}),
        ("dict", [""], {"min": 4}),
        ("dict", [{"min": [3]}], "min"),
        ({"type": "array", "items": {"type": "dict"}}, [[{"k": [1]}, {"k": [2]}]], [{"k": 2}, {"k": 1}]),
        ({"type": "array", "items": {"type": "dict"}}, [[{"k": [1]}]], [{"k": 1}, {"k": 1}]),
    ],
)
def test_unacceptable_arguments(kind: Any, acceptable: list[Any], value: Any) -> None:
    assert "x =" in fault(kind, acceptable, value)


def test_missing_and_superfluous_arguments() -> None:
    described = function(item="string", count="integer", gift="boolean")
    expected = {"shop.buy": {"item": ["cup"], "count": [2, ""], "gift": [True]}}

    def of(**arguments: Any) -> str:
        return call_fault(described, expected, ToolCall("shop.buy", arguments))

    assert of(item="cup", count=2, gift=True) == ""
    assert of(item="cup", gift=True) == ""
    assert "required argument 'item'" in of(count=2, gift=True)
    assert "'gift' is missing" in of(item="cup")
    assert "no argument 'colour'" in of(item="cup", gift=True, colour="red")
    described, expected = function(item="string", extra="string"), {"shop.buy": {"item": ["cup"]}}
    assert "no argument 'extra'" in call_fault(described, expected, ToolCall("shop.buy", {"item": "cup", "extra": "x"}))


def test_names_with_dots_may_have_underscores() -> None:
    expected = {"shop.buy": {"item": ["cup"]}}
    for name, is_right in (("shop.buy", True), ("shop_buy", True), ("buy", False), ("shop.sell", False)):
        assert (call_fault(function(item="string"), expected, ToolCall(name, {"item": "cup"})) == "") == is_right


def test_parallel_calls_in_any_order() -> None:
    functions = [function(item="string"), function("shop.sell", item="string")]
    wanted = [{"shop.buy": {"item": ["cup"]}}, {"shop.buy": {"item": ["pot"]}}, {"shop.sell": {"item": ["cup"]}}]
    buy_cup, buy_pot, sell = (
        ToolCall("shop.buy", {"item": "cup"}),
        ToolCall("shop_buy", {"item": "pot"}),
        ToolCall("shop.sell", {"item": "cup"}),
    )
    assert calls_fault(functions, wanted, [sell, buy_pot, buy_cup]) == ""
    assert "2 calls instead of 3" in calls_fault(functions, wanted, [buy_cup, buy_pot])
    assert "no call is shop.buy" in calls_fault(functions, wanted, [buy_cup, buy_cup, sell])


def test_the_standard_form_of_texts() -> None:
    assert standardised("St. John's, 5th-Ave_*^/x") == 'stjohn"s5thavex'


def test_types_become_json_types() -> None:
    nested = {
        "type": "array",
        "items": {"type": "dict", "properties": {"y": {"type": "tuple", "items": {"type": "float"}}}},
    }
    (tool,) = tools(
        [function(a="float", b="any", c="integer", d="dict", e="tuple", f="boolean", g="HashMap", h=nested)]
    )
    properties = tool["function"]["parameters"]["properties"]
    assert tool["type"] == "function"
    assert tool["function"]["parameters"]["type"] == "object"
    assert [properties[key]["type"] for key in "abcdefg"] == [
        *("number", "string", "integer", "object", "array", "boolean", "string")
    ]
    assert properties["a"]["format"] == "float"
    assert properties["h"]["items"]["properties"]["y"] == {
        "type": "array",
        "items": {"type": "number", "format": "float"},
    }


XML = (
    "Let me see.\n<tool_call>\n<function={}>\n<parameter=item>\ncup\n</parameter>\n<parameter=count>\n2\n</parameter>\n"
    "</function>\n</tool_call>"
)


@pytest.mark.parametrize(
    "answer",
    [
        XML.format("shop.buy"),
        XML.format("shop_buy"),
        "<think>\n" + XML.format("other") + "\n</think>\n" + XML.format("shop.buy"),
        '<tool_call>\n{"name": "shop.buy", "arguments": {"item": "cup", "count": 2}}\n</tool_call>',
        '[{"name": "shop.buy", "arguments": {"item": "cup", "count": 2}}]',
        ' {"name": "shop.buy", "arguments": "{\\"item\\": \\"cup\\", \\"count\\": 2}"}\n',
        '[{"type": "function", "function": {"name": "shop.buy", "arguments": {"item": "cup", "count": 2}}}]',
        '[{"shop.buy": "{\\"item\\": \\"cup\\", \\"count\\": 2}"}]',
    ],
)
def test_forms_of_answers(answer: str) -> None:
    (call,) = parse_calls(answer, [function(item="string", count="integer")])
    assert call.name in ("shop.buy", "shop_buy")
    assert call.arguments == {"item": "cup", "count": 2}


@pytest.mark.parametrize(
    "answer",
    ["", "No tool fits.", "[]", "[1, 2]", '{"answer": 1}', "[" * 100_000, '{"name": 3}', '[{"a": "{"}]', "\0\udc80"],
)
def test_answers_without_calls(answer: str) -> None:
    assert parse_calls(answer, [function(item="string")]) == ()


def write(folder: Path, category: str, records: list[Any], truths: list[Any] | None = None) -> Path:
    file = folder / f"BFCL_v4_{category}.json"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    if truths is not None:
        (folder / "possible_answer").mkdir(exist_ok=True)
        (folder / "possible_answer" / file.name).write_text("".join(json.dumps(truth) + "\n" for truth in truths))
    return file


def record(number: int = 0, category: str = "simple_python") -> dict[str, Any]:
    question = [[{"role": "user", "content": "Buy a cup."}]]
    described = function(item="string", count="integer")
    return {"id": f"{category}_{number}", "question": question, "function": [described]}


TRUTH = {"id": "simple_python_0", "ground_truth": [{"shop.buy": {"item": ["cup"], "count": ["", 1]}}]}


def test_a_folder_and_a_file(tmp_path: Path) -> None:
    file = write(tmp_path, "simple_python", [record()], [TRUTH])
    write(tmp_path, "irrelevance", [record(0, "irrelevance")])
    write(tmp_path, "multi_turn_base", [{"id": "multi_turn_base_0"}])
    assert [problem.task_id for problem in Bfcl().load(tmp_path)] == ["simple_python_0", "irrelevance_0"]
    (problem,) = Bfcl().load(file)
    assert [each.task_id for each in Bfcl(SuiteOptions(variant="irrelevance")).load(tmp_path)] == ["irrelevance_0"]
    prompt = Bfcl().prompt(problem, "chat")
    assert prompt.messages == ({"role": "user", "content": "Buy a cup."},)
    assert prompt.tools is not None
    assert prompt.tools[0]["function"]["name"] == "shop.buy"


def test_irrelevance_and_relevance(tmp_path: Path) -> None:
    call = '[{"name": "shop.buy", "arguments": {}}]'
    for category, of_call, of_text in (("irrelevance", "failed", "ok"), ("live_relevance", "ok", "failed")):
        (problem,) = Bfcl().load(write(tmp_path, category, [record(0, category)]))
        assert Bfcl().judge(problem, Answer(call), run).verdict == of_call
        assert Bfcl().judge(problem, Answer("I cannot do that."), run).verdict == of_text


@pytest.mark.parametrize(
    ("records", "truths", "said"),
    [
        ([record()], None, "possible_answer/BFCL_v4_simple_python.json is missing"),
        ([record(1)], [TRUTH], "line 1: 'simple_python_1' has no entry among the possible answers"),
        ([record(), record()], [TRUTH], "line 2: id 'simple_python_0'"),
        ([{**record(), "function": [{"name": 3}]}], [TRUTH], "line 1: a function is no object with a name"),
        ([{**record(), "function": [{"name": "f"}]}], [TRUTH], "line 1: the function 'f' has no parameters"),
        ([{**record(), "question": []}], [TRUTH], "line 1: the question is no list of turns"),
        ([{**record(), "id": "simple_java_0"}], [TRUTH], "line 1: the category 'simple_java' is none of"),
        ([record()], [{**TRUTH, "ground_truth": [{"f": {"x": 1}}]}], "line 1: a ground truth is no object"),
    ],
)
def test_faulty_data(tmp_path: Path, records: list[Any], truths: list[Any] | None, said: str) -> None:
    file = write(tmp_path, "simple_python", records, truths)
    with pytest.raises(CodemillError) as error:
        Bfcl().load(file)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(CodemillError, match="BFCL_v4_simple_python"):
        Bfcl().load(tmp_path)


@pytest.mark.parametrize("options", [SuiteOptions(variant="multi_turn"), SuiteOptions(language="java")])
def test_unknown_options(options: SuiteOptions) -> None:
    with pytest.raises(UsageError):
        Bfcl(options)


@pytest.fixture(scope="module")
def problems(shared_data: Path) -> list[Problem]:
    return Bfcl().load(shared_data / "bfcl_v4")


def test_gold_is_right_and_other_answers_are_not(problems: list[Problem]) -> None:
    """All 1240: the gold calls pass through the parser; those of another problem do not pass."""
    suite = Bfcl()
    assert len(problems) == 1240
    gold = [suite.gold(problem) for problem in problems]
    for i, (problem, answer) in enumerate(zip(problems, gold, strict=True)):
        assert answer is not None
        assert suite.judge(problem, answer, run).verdict == "ok", problem.task_id
        other = gold[(i + 7) % len(gold)]
        if other is not None and other.text != answer.text:
            verdict = suite.judge(problem, other, run).verdict
            assert verdict == ("ok" if not other.text and problem.fields["category"] == "irrelevance" else "failed")


def test_one_wrong_argument_is_enough(problems: list[Problem]) -> None:
    suite = Bfcl()
    for problem in problems:
        for i, expected in enumerate(problem.fields["ground_truth"]):
            name, arguments = next(iter(expected.items()))
            wrong = {**arguments, next(iter(arguments), "x"): ["something else entirely"]}
            truth = [*problem.fields["ground_truth"][:i], {name: wrong}, *problem.fields["ground_truth"][i + 1 :]]
            answer = suite.gold(Problem(problem.task_id, {**problem.fields, "ground_truth": truth}))
            assert answer is not None
            assert suite.judge(problem, answer, run).verdict == "failed", problem.task_id
