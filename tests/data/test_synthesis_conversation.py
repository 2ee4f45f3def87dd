"""Tasks as conversations: the answer solves the task, and the request says what it is."""

from itertools import islice
from random import Random

from codemill.data.synthesis import generate_tasks, verify
from codemill.data.synthesis.conversation import answer, conversation, without_example
from codemill.eval.fences import blocks

TASKS = list(islice(generate_tasks(seed=3), 400))


def test_the_block_of_every_answer_solves_its_task() -> None:
    for task in TASKS:
        (block,) = blocks(answer(task))
        assert block.language == "python"
        assert verify(task, block.code)


def test_answers_hold_no_example() -> None:
    examples = [task for task in TASKS if ">>>" in task.prompt]
    assert len(examples) > 20
    for task in examples:
        assert ">>>" not in answer(task)
        assert without_example(task.prompt).count('"""') == 2


def test_requests_come_in_several_phrasings_that_all_state_the_task() -> None:
    random = Random(0)
    seen = set()
    for task in TASKS:
        user, assistant = conversation(task, random)
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert task.instruction in user["content"] or task.prompt.rstrip() in user["content"]
        seen.add(user["content"].replace(task.instruction, "").replace(task.prompt.rstrip(), ""))
    assert len(seen) == 8


def test_the_same_seed_gives_the_same_conversations() -> None:
    first, second = ([conversation(task, random) for task in TASKS] for random in (Random(1), Random(1)))
    assert first == second
