"""The grammar of synthetic tasks: every task is right, deterministic, and on its side of the split."""

import ast
from collections import Counter
from itertools import islice
from random import Random

import pytest

from codemill.data.synthesis import OPERATIONS, SyntheticTask, generate_tasks, is_held_out, verify
from codemill.data.synthesis.classics import CLASSICS
from codemill.data.synthesis.phrasing import third_person
from codemill.data.synthesis.writing import Bound, write_body


@pytest.fixture(scope="module")
def training() -> list[SyntheticTask]:
    return list(islice(generate_tasks(seed=0), 12000))


@pytest.fixture(scope="module")
def held_out() -> list[SyntheticTask]:
    return list(islice(generate_tasks(seed=1, held_out=True), 1500))


def test_same_seed_gives_the_same_tasks(training: list[SyntheticTask]) -> None:
    assert list(islice(generate_tasks(seed=0), 500)) == training[:500]
    assert list(islice(generate_tasks(seed=2), 500)) != training[:500]


def test_a_task_is_pinned_across_processes() -> None:
    assert [is_held_out(("keep_even", name)) for name in ("sum", "longest_word", "range_list")] == [
        False,
        True,
        True,
    ]


def test_every_operation_and_classic_occurs(training: list[SyntheticTask]) -> None:
    counts = Counter(name for task in training for name in task.operations)
    assert len(OPERATIONS) >= 90
    assert {operation.name for operation in OPERATIONS} <= counts.keys()
    assert {classic.name for classic in CLASSICS} <= counts.keys()


def test_every_operation_occurs_in_a_training_composition(training: list[SyntheticTask]) -> None:
    composed = {name for task in training if len(task.operations) > 1 for name in task.operations}
    assert {operation.name for operation in OPERATIONS} <= composed


def test_combinations_are_disjoint(training: list[SyntheticTask], held_out: list[SyntheticTask]) -> None:
    assert not {task.operations for task in training} & {task.operations for task in held_out}
    assert all(task.held_out for task in held_out)
    assert not any(task.held_out for task in training)
    assert len({task.operations for task in held_out}) > 500


def test_solutions_pass_their_tests(training: list[SyntheticTask], held_out: list[SyntheticTask]) -> None:
    for task in training[:3000] + held_out:
        assert verify(task, task.prompt + task.solution), task


def test_wrong_solutions_fail(training: list[SyntheticTask]) -> None:
    for task in training[:300]:
        assert not verify(task, f"{task.prompt}    return None\n")
        assert not verify(task, f"{task.prompt}    return undefined_name\n")
        assert not verify(task, f"{task.prompt}    return (\n")


def test_a_left_out_step_fails(training: list[SyntheticTask]) -> None:
    stepwise = [task for task in training if task.solution.count("\n") == 3 and len(task.operations) == 3]
    tried = 0
    for task in stepwise[:300]:
        first, second, last = task.solution.splitlines(keepends=True)
        if first.split(" = ")[0] == second.split(" = ")[0]:
            tried += 1
            assert not verify(task, task.prompt + first + last), task
    assert tried > 50


def test_tasks_are_whole_functions_with_a_docstring(training: list[SyntheticTask]) -> None:
    for task in training[:3000]:
        (function,) = ast.parse(task.prompt + task.solution).body
        assert isinstance(function, ast.FunctionDef)
        assert function.name == task.entry_point
        assert ast.get_docstring(function)
        assert function.returns is not None
        assert f"`{task.entry_point}(" in task.instruction


def test_tests_are_deterministic_assertions(training: list[SyntheticTask]) -> None:
    for task in training[:3000]:
        assert 3 <= len(task.tests) <= 6
        for line in task.tests:
            assert line.startswith(f"assert {task.entry_point}(")
            calls = [node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call)]
            assert len(calls) == 1


def test_tasks_are_distinct(training: list[SyntheticTask]) -> None:
    assert len({(task.prompt, task.solution) for task in training}) == len(training)
    assert len({task.task_id for task in training}) == len(training)


def test_docstring_examples_show_a_test(training: list[SyntheticTask]) -> None:
    shown = [task for task in training if ">>> " in task.prompt]
    assert 0.25 < len(shown) / len(training) < 0.4
    for task in shown[:300]:
        call, output = (line.strip() for line in task.prompt.split(">>> ")[1].splitlines()[:2])
        assert f"assert {call} == {output}" in task.tests


def test_forms_of_an_operation_agree() -> None:
    """The loop form of an operation computes what its expression does."""
    argument = {"list[int]": [3, -2, 4, 4, 0, 9], "list[str]": ["era", "x", "oat"], "str": "A tea, 4 two"}
    for operation in OPERATIONS:
        if not (operation.loop and operation.codes):
            continue
        code = {"k": "3", "d": "2", "c": "2", "letter": "'e'"}
        outputs = []
        for seed in range(40):
            body = write_body([Bound(operation, code)], "given", Random(seed))
            namespace: dict[str, object] = {"given": argument[operation.takes]}
            exec(f"def f(given):\n{body}outcome = f(given)", namespace)
            outputs.append((body, namespace["outcome"]))
        assert len({body for body, _ in outputs}) == 2
        assert all(output == outputs[0][1] for _, output in outputs), operation.name


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        ("square each number", "squares each number"),
        ("multiply by 2", "multiplies by 2"),
        ("flip the sign", "flips the sign"),
        ("search a list", "searches a list"),
        ("play a game", "plays a game"),
    ],
)
def test_third_person(clause: str, expected: str) -> None:
    assert third_person(clause) == expected
