"""The model that ships in the package: small enough, readable by others, and good at what its card says."""

import itertools

import pytest
import torch
import transformers

from codemill import LLM, SamplingParams, sandbox
from codemill.chat import Tokenizer
from codemill.data.synthesis import SyntheticTask, generate_tasks
from codemill.models import load_model
from codemill.spec import EMBEDDED

PROGRAM = 'def total(numbers: list[int]) -> int:\n    """Return the sum of the numbers."""\n    return sum(numbers)\n'


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


def test_it_is_small_enough_to_ship() -> None:
    assert (EMBEDDED / "model.safetensors").stat().st_size <= 32_000_000


def test_transformers_loads_it_to_the_same_logits_and_tokens() -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED)
    ids = Tokenizer.load().encode(PROGRAM)
    assert tokenizer(PROGRAM)["input_ids"] == ids
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits
    torch.testing.assert_close(load_model(dtype="float32")(torch.tensor([ids])), expected, atol=1e-4, rtol=0)


def test_it_solves_held_out_tasks(llm: LLM) -> None:
    tasks = list(itertools.islice(generate_tasks(2024, held_out=True), 16))
    outputs = llm.generate([task.prompt for task in tasks], SamplingParams(temperature=0.0, max_tokens=150))
    solved = sum(passes(task, task.prompt + o.outputs[0].text) for task, o in zip(tasks, outputs, strict=True))
    assert solved >= 13


def passes(task: SyntheticTask, program: str) -> bool:
    """Whether the tests pass."""
    return sandbox.run("\n".join([program, *task.tests])).completed


def test_it_answers_a_chat_with_a_program(llm: LLM) -> None:
    question = "Write a Python function `solve(numbers)` that keeps the even numbers and returns the sum."
    (output,) = llm.chat([{"role": "user", "content": question}], SamplingParams(temperature=0.0))
    assert output.outputs[0].text.startswith("```python\ndef solve(")
    assert output.outputs[0].finish_reason == "stop"
