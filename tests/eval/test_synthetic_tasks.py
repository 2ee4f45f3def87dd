"""Our own held-out tasks as a suite."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from codemill.data.synthesis import generate_tasks, is_held_out
from codemill.errors import CodemillError, UsageError
from codemill.eval.dataset import load_dataset
from codemill.eval.suite import Answer, Problem, Run, SuiteOptions
from codemill.eval.synthetic_tasks import COUNT, SEED, SyntheticTasks

SUITE = SyntheticTasks()


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return SUITE.builtin()


def verdicts(problems: list[Problem], answers: list[Answer], run: Run) -> set[str]:
    with ThreadPoolExecutor(2) as threads:
        judgements = threads.map(lambda problem, answer: SUITE.judge(problem, answer, run), problems, answers)
        return {judgement.verdict for judgement in judgements}


def test_the_tasks_that_come_with_the_package(problems: list[Problem]) -> None:
    assert len(problems) == len({problem.task_id for problem in problems}) == COUNT
    assert all(is_held_out(tuple(problem.fields["operations"])) for problem in problems)
    first = next(generate_tasks(SEED, held_out=True))
    assert problems[0].task_id == first.task_id
    assert problems[0].fields["canonical_solution"] == first.solution
    assert load_dataset(SUITE).problems == problems


def gold(problem: Problem) -> Answer:
    answer = SUITE.gold(problem)
    assert answer is not None
    return answer


def test_gold_and_what_models_make_of_it(problems: list[Problem], run: Run) -> None:
    some = problems[::5]
    assert verdicts(some, [gold(problem) for problem in some], run) == {"ok"}
    went_on = [SUITE.clean(each, gold(each).text + "\n\nprint(1 / 0)\n", "base") for each in some[:20]]
    assert verdicts(some[:20], went_on, run) == {"ok"}
    talked = [
        SUITE.clean(each, f"Sure!\n\n```python\n{each.fields['prompt']}{gold(each).text}```\nAnything else?", "chat")
        for each in some[:20]
    ]
    assert verdicts(some[:20], talked, run) == {"ok"}


def test_wrong_answers(problems: list[Problem], run: Run) -> None:
    some = problems[:20]
    for text in (
        "    return ...\n",
        "    exit()\n",
        "    return (\n",
        "",
        "\0",
        "    return 1\nimport os\nos._exit(0)\n",
    ):
        assert verdicts(some[:5], [Answer(text)] * 5, run) == {"failed"}
    assert verdicts(some, [gold(each) for each in some[1:] + some[:1]], run) == {"failed"}


@pytest.mark.slow
def test_all_gold(problems: list[Problem], run: Run) -> None:
    assert verdicts(problems, [gold(problem) for problem in problems], run) == {"ok"}


def test_prompts(problems: list[Problem]) -> None:
    problem = problems[0]
    assert SUITE.prompt(problem, "base").text == problem.fields["prompt"]
    chat = SUITE.prompt(problem, "chat")
    assert chat.messages == ({"role": "user", "content": problem.fields["instruction"]},)


def test_a_file_in_humanevals_format(tmp_path: Path, run: Run) -> None:
    record = {
        "task_id": "mine/0",
        "prompt": 'def add(a, b):\n    """Add."""\n',
        "entry_point": "add",
        "canonical_solution": "    return a + b\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    }
    listed = {**record, "task_id": "mine/1", "tests": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]}
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in (record, listed)))
    problems = SUITE.load(file)
    assert verdicts(problems, [gold(problem) for problem in problems], run) == {"ok"}
    assert verdicts(problems, [Answer("    return 3 * (a > 0) + 1 * (a == 0)\n")], run) == {"ok"}
    assert verdicts(problems[1:], [Answer("    return 3\n")], run) == {"failed"}
    assert verdicts(problems, [Answer("    return a - b\n")] * 2, run) == {"failed"}
    chat = SUITE.prompt(problems[0], "chat")
    assert chat.messages is not None
    assert record["prompt"].strip() in chat.messages[0]["content"]


@pytest.mark.parametrize("change", [{"test": None}, {"test": " "}, {"tests": []}, {"entry_point": 1}, {"prompt": 1}])
def test_faulty_records(change: dict[str, object], tmp_path: Path) -> None:
    record = {"task_id": "x", "prompt": "", "entry_point": "f", "test": "assert True", **change}
    file = tmp_path / "tasks.jsonl"
    file.write_text(json.dumps(record) + "\n")
    with pytest.raises(CodemillError, match="line 1: "):
        SUITE.load(file)


def test_unknown_options() -> None:
    for options in (SuiteOptions(variant="x"), SuiteOptions(language="rust")):
        with pytest.raises(UsageError):
            SyntheticTasks(options)


def test_the_generator_is_the_same_in_every_process(problems: list[Problem]) -> None:
    again = [task.task_id for task in islice(generate_tasks(SEED, held_out=True), 50)]
    assert [problem.task_id for problem in problems[:50]] == again
