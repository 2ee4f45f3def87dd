"""How models are asked, whatever they run on: requests in, answers out as they are finished. No torch here."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from codemill.eval.suite import Problem, Prompt, Style, Suite

DEFAULT_TEMPERATURE = 0.8  # of several samples a problem, as in Chen et al. 2021 (arXiv:2107.03374)


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. The same for every kind of model, and nothing of it is left to a checkpoint's defaults.

    max_tokens: None is what the suite says for each prompt.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """One sample to be drawn. may_cut: a prompt that is too long for the model may lose what is farthest away."""

    task_id: str
    index: int
    prompt: Prompt
    seed: int
    may_cut: bool = False


@dataclass(frozen=True)
class Generated:
    """What came of a request: `text` as the model wrote it, or the `error` why there is none, or why the model was
    `unable` to answer: its context does not hold the prompt.

    finish_reason: "stop", "length" and so on, as the engine or the server says. note: one line on what is worth knowing
    about the answer, such as that its prompt was cut.
    """

    request: GenerationRequest
    text: str = ""
    finish_reason: str | None = None
    error: str | None = None
    unable: str | None = None
    note: str = ""


class Generator(Protocol):
    """A model that answers requests. Results come in any order, each as soon as it is there.

    What goes wrong with one request is in its result; `generate` raises CodemillError for what ends the whole run.
    """

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generated]: ...


def sample_seed(base: int, task_id: str, index: int) -> int:
    """The seed of one sample, 0 to 2**31 - 1. It depends on these three alone: no order of work changes it."""
    digest = hashlib.sha256(f"{base}/{task_id}/{index}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def make_request(suite: Suite, problem: Problem, index: int, style: Style, base_seed: int) -> GenerationRequest:
    """The request for sample `index` of a problem."""
    return GenerationRequest(
        task_id=problem.task_id,
        index=index,
        prompt=suite.prompt(problem, style),
        seed=sample_seed(base_seed, problem.task_id, index),
        may_cut=style == "fim" or suite.cut_prompts,
    )


def prompt_text(prompt: Prompt) -> str:
    """The prompt as a reader of the report sees it."""
    if prompt.messages is not None:
        return "\n\n".join(f"[{message.get('role')}]\n{_content(message)}" for message in prompt.messages)
    if prompt.prefix is not None:
        return f"{prompt.prefix}⟨…⟩{prompt.suffix}"
    return prompt.text or ""


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else repr(content)
