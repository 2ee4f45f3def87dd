"""The training mixture: forms, weights, shares, bounds."""

import subprocess
import sys
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models

from codemill.data.corpus import Module
from codemill.data.mixture import Mixture, build_documents, iter_documents
from codemill.data.packing import Document, pack
from codemill.errors import UsageError

PLAIN = Mixture(module_fim=0.0, task_fim=0.0, task_chat=0.0)
TASK_FIM = Mixture(task_fim=1.0, task_chat=0.0, task_neighbours=0.0)
CHAT = Mixture(task_fim=0.0, task_chat=1.0)


def text_of(document: Document, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(document.ids.tolist(), skip_special_tokens=False)


def weighted(document: Document, tokenizer: Tokenizer, weight: float) -> str:
    chosen = document.ids[abs(document.weights - weight) < 1e-6]
    return tokenizer.decode(chosen.tolist(), skip_special_tokens=False)


def test_plain_tasks_weigh_the_solution_over_the_prompt(tokenizer: Tokenizer, tasks: list) -> None:
    document = next(iter_documents(tokenizer, [], tasks, 0, PLAIN))
    assert weighted(document, tokenizer, 0.3) == tasks[0].prompt
    assert weighted(document, tokenizer, 1.0) == tasks[0].solution + "<|endoftext|>"


def test_chat_tasks_learn_the_answer_only(tokenizer: Tokenizer, tasks: list) -> None:
    document = next(iter_documents(tokenizer, [], tasks, 0, CHAT))
    task = tasks[0]
    answer = f"```python\n{task.prompt}{task.solution}```<|im_end|>"
    question = f"<|im_start|>user\n{task.instruction}<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(document, tokenizer) == question + answer + "\n"
    assert weighted(document, tokenizer, 1.0) == answer
    prompt_ids = tokenizer.encode(question).ids
    assert document.ids[: len(prompt_ids)].tolist() == prompt_ids


def test_tasks_with_a_hole_join_to_the_program(tokenizer: Tokenizer, tasks: list) -> None:
    bodies = 0
    for task, document in zip(tasks, iter_documents(tokenizer, [], tasks, 0, TASK_FIM), strict=True):
        given, middle = text_of(document, tokenizer).split("<|fim_middle|>")
        prefix, suffix = given.removeprefix("<|fim_prefix|>").split("<|fim_suffix|>")
        assert weighted(document, tokenizer, 1.0) == middle
        middle = middle.removesuffix("<|endoftext|>")
        assert prefix + middle + suffix == task.prompt + task.solution
        assert prefix.startswith(task.prompt.rstrip("\n"))
        bodies += middle.strip() == task.solution.strip()
    assert 0.2 < bodies / len(tasks) < 0.5  # a body of one line is also a missing line


def test_a_hole_among_other_functions_is_the_same_hole(tokenizer: Tokenizer, tasks: list) -> None:
    mixture = replace(TASK_FIM, task_neighbours=1.0)
    programs = {task.prompt + task.solution for task in tasks}
    among = 0
    for task, document in zip(tasks, iter_documents(tokenizer, [], tasks, 0, mixture), strict=True):
        given, middle = text_of(document, tokenizer).split("<|fim_middle|>")
        prefix, suffix = given.removeprefix("<|fim_prefix|>").split("<|fim_suffix|>")
        functions = (prefix + middle.removesuffix("<|endoftext|>") + suffix).split("\n\n\n")
        texts = [function.rstrip("\n") + "\n" for function in functions]
        assert task.prompt + task.solution in texts
        assert set(texts) <= programs
        among += len(texts) > 1
    assert among / len(tasks) > 0.7


def test_plain_modules_come_back_whole(tokenizer: Tokenizer, modules: list[Module]) -> None:
    documents = list(iter_documents(tokenizer, modules, [], 0, PLAIN))
    text = "".join(text_of(document, tokenizer) for document in documents)
    assert text == "".join(module.text + "<|endoftext|>" for module in modules)
    assert all((document.weights == 1).all() for document in documents)


def test_shares(tokenizer: Tokenizer, modules: list[Module], tasks: list) -> None:
    texts = [text_of(d, tokenizer) for d in build_documents(tokenizer, [], tasks * 5, 1)]
    assert 0.2 < sum(text.startswith("<|im_start|>") for text in texts) / len(texts) < 0.3
    assert 0.2 < sum(text.startswith("<|fim_prefix|>") for text in texts) / len(texts) < 0.3
    small = Mixture(capacity=128)
    texts = [text_of(d, tokenizer) for d in build_documents(tokenizer, modules, [], 1, small)]
    assert 0.4 < sum(text.startswith("<|fim_prefix|>") for text in texts) / len(texts) < 0.6


def test_documents_fit_and_pack(tokenizer: Tokenizer, modules: list[Module], tasks: list) -> None:
    documents = build_documents(tokenizer, modules, tasks, 2, Mixture(capacity=256))
    assert all(2 <= len(document) <= 256 for document in documents)
    rows = pack(documents, 256, tokenizer.token_to_id("<|endoftext|>"))
    assert rows.fill > 0.85
    assert rows.input_ids.max() < tokenizer.get_vocab_size()


def test_the_seed_decides(tokenizer: Tokenizer, modules: list[Module], tasks: list) -> None:
    def ids(seed: int) -> list[list[int]]:
        return [d.ids.tolist() for d in build_documents(tokenizer, modules[:2], tasks[:50], seed)]

    assert ids(1) == ids(1)
    assert sorted(ids(1)) != sorted(ids(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"task_fim": 0.7, "task_chat": 0.7}, "at most 1"), ({"module_fim": 2}, "0 to 1"), ({"capacity": 8}, "too small")],
)
def test_impossible_mixtures_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Mixture(**settings)


def test_a_foreign_tokenizer_is_refused(tasks: list) -> None:
    with pytest.raises(UsageError, match="has no token"):
        build_documents(Tokenizer(models.BPE()), [], tasks[:1], 0)


def test_the_package_does_not_import_torch() -> None:
    code = "import codemill.data.mixture, codemill.data.token_file, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
