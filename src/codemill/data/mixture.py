"""The embedded model's training text: library modules and synthetic tasks, plain, with a hole, as chat."""

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from codemill.data.chunks import Chunk, chunk_modules, encode_texts
from codemill.data.corpus import Module
from codemill.data.fim import (
    END_OF_TEXT,
    FIM_MIDDLE,
    FIM_PREFIX,
    FIM_SUFFIX,
    FimExample,
    fim_transform,
    single_line_example,
)
from codemill.data.packing import Document, split_document
from codemill.errors import UsageError

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
CHUNK_RESERVE = 16
"""Tokens kept free in a chunk for FIM tokens and for words that a cut splits in two."""
DRAFTS_PER_BATCH = 2048


class Task(Protocol):
    """What this module needs of a synthetic task (see `codemill.data.synthesis`)."""

    @property
    def prompt(self) -> str: ...
    @property
    def solution(self) -> str: ...
    @property
    def instruction(self) -> str: ...


@dataclass(frozen=True)
class Mixture:
    """How the text is mixed; shares are of documents, weights are loss weights."""

    capacity: int = 1024
    """Most tokens of a document; also the T of the packed rows."""
    module_tokens: int = 1024
    """Most tokens of a module chunk (never more than the capacity holds)."""
    module_fim: float = 0.5
    """Share of module chunks with a hole."""
    task_fim: float = 0.25
    task_chat: float = 0.25
    """Shares of tasks with a hole and as chat; the others are plain."""
    body_hole: float = 0.3
    """Share of the tasks with a hole whose whole body is removed, not one line of it."""
    task_neighbours: float = 0.5
    """Share of the tasks with a hole that stand among other functions, as in a file."""
    module_given_weight: float = 1.0
    """Weight of the given part of modules with a hole; below 1 the missing part counts for more."""
    prompt_weight: float = 0.3
    """Weight of the given part (prompt, prefix, suffix) of plain tasks and of tasks with a hole."""

    def __post_init__(self) -> None:
        shares = ("module_fim", "task_fim", "task_chat", "body_hole", "task_neighbours")
        for name in (*shares, "prompt_weight", "module_given_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give a value from 0 to 1")
        if self.task_fim + self.task_chat > 1:
            raise UsageError(f"task_fim + task_chat is {self.task_fim + self.task_chat}; keep the sum at most 1")
        for name in ("capacity", "module_tokens"):
            if getattr(self, name) <= 2 * CHUNK_RESERVE:
                raise UsageError(f"{name} {getattr(self, name)} is too small; use more than {2 * CHUNK_RESERVE}")


@dataclass(frozen=True)
class Part:
    """A stretch of a document: a text, or one special token (`is_token`), with the weight of its tokens."""

    text: str
    weight: float
    is_token: bool = False


def build_documents(
    tokenizer: Tokenizer,
    modules: Iterable[Module],
    tasks: Iterable[Task],
    seed: int,
    mixture: Mixture | None = None,
) -> list[Document]:
    """All documents of one pass over modules and tasks, shuffled, each of 2..capacity tokens."""
    documents = list(iter_documents(tokenizer, modules, tasks, seed, mixture))
    random.Random(seed).shuffle(documents)
    return documents


def iter_documents(
    tokenizer: Tokenizer,
    modules: Iterable[Module],
    tasks: Iterable[Task],
    seed: int,
    mixture: Mixture | None = None,
) -> Iterator[Document]:
    """The documents of `build_documents` one by one, modules first; another seed cuts other holes."""
    mixture = mixture or Mixture()
    rng = random.Random(seed)
    chunks = chunk_modules(tokenizer, modules, min(mixture.module_tokens, mixture.capacity - CHUNK_RESERVE))
    yield from _documents((module_parts(chunk, rng, mixture) for chunk in chunks), tokenizer, mixture.capacity)
    yield from _documents(_task_drafts(tasks, rng, mixture), tokenizer, mixture.capacity)


def module_parts(chunk: Chunk, rng: random.Random, mixture: Mixture) -> list[Part]:
    """A chunk of a module, plain (every token has weight 1) or with a hole."""
    if rng.random() < mixture.module_fim:
        return fim_parts(fim_transform(chunk.text, rng), mixture.module_given_weight)
    parts = [Part(chunk.text, 1.0)]
    return [*parts, _token(END_OF_TEXT, 1.0)] if chunk.is_last else parts


def _task_drafts(tasks: Iterable[Task], rng: random.Random, mixture: Mixture) -> Iterator[list[Part]]:
    recent: deque[str] = deque(maxlen=32)
    for task in tasks:
        yield task_parts(task, rng, mixture, recent)
        recent.append(task.prompt + task.solution)


def task_parts(task: Task, rng: random.Random, mixture: Mixture, neighbours: Sequence[str] = ()) -> list[Part]:
    """A task in one of its three forms, drawn by the shares of the mixture; `neighbours` are other functions."""
    choice = rng.random()
    if choice < mixture.task_chat:
        return chat_parts(task)
    if choice < mixture.task_chat + mixture.task_fim:
        hole = _task_hole(task, rng, mixture.body_hole)
        if neighbours and rng.random() < mixture.task_neighbours:
            hole = _among_neighbours(hole, rng, neighbours)
        return fim_parts(hole, mixture.prompt_weight)
    return plain_parts(task, mixture.prompt_weight)


def plain_parts(task: Task, prompt_weight: float) -> list[Part]:
    """Prompt and solution, closed by the end token."""
    return [Part(task.prompt, prompt_weight), Part(task.solution, 1.0), _token(END_OF_TEXT, 1.0)]


def fim_parts(example: FimExample, given_weight: float) -> list[Part]:
    """Prefix-suffix-middle form; weight 1 on the middle and the end token, `given_weight` elsewhere."""
    return [
        _token(FIM_PREFIX, given_weight),
        Part(example.prefix, given_weight),
        _token(FIM_SUFFIX, given_weight),
        Part(example.suffix, given_weight),
        _token(FIM_MIDDLE, given_weight),
        Part(example.middle, 1.0),
        _token(END_OF_TEXT, 1.0),
    ]


def chat_parts(task: Task) -> list[Part]:
    """One ChatML turn: the instruction, and the program in a Markdown block; loss on the answer only."""
    program = task.prompt + task.solution
    newline = "" if program.endswith("\n") else "\n"
    return [
        _token(IM_START, 0.0),
        Part(f"user\n{task.instruction}", 0.0),
        _token(IM_END, 0.0),
        Part("\n", 0.0),
        _token(IM_START, 0.0),
        Part("assistant\n", 0.0),
        Part(f"```python\n{program}{newline}```", 1.0),
        _token(IM_END, 1.0),
        Part("\n", 0.0),
    ]


def _task_hole(task: Task, rng: random.Random, body_hole: float) -> FimExample:
    line = None if rng.random() < body_hole else single_line_example(task.solution, rng)
    if line is None:
        return _body_hole(task, rng)
    return FimExample(task.prompt + line.prefix, line.middle, line.suffix)


def _body_hole(task: Task, rng: random.Random) -> FimExample:
    """The whole body missing: from the end of the docstring, from the next line, or from behind its indentation."""
    body = task.solution.rstrip("\n")
    indent = body[: len(body) - len(body.lstrip())]
    holes = (
        FimExample(task.prompt.rstrip("\n"), f"\n{body}", "\n"),
        FimExample(task.prompt, task.solution, ""),
        FimExample(task.prompt + indent, body.removeprefix(indent), "\n"),
    )
    return rng.choice(holes)


def _among_neighbours(hole: FimExample, rng: random.Random, neighbours: Sequence[str]) -> FimExample:
    """The same hole in a file with up to two functions before it and up to two after it."""
    before, after = (rng.sample(list(neighbours), min(rng.randint(0, 2), len(neighbours))) for _ in range(2))
    prefix = "".join(f"{function}\n\n" for function in before)
    suffix = "".join(f"\n\n{function}" for function in after)
    return FimExample(prefix + hole.prefix, hole.middle, hole.suffix + suffix)


def _token(text: str, weight: float) -> Part:
    return Part(text, weight, is_token=True)


def _documents(drafts: Iterable[list[Part]], tokenizer: Tokenizer, capacity: int) -> Iterator[Document]:
    """Encode drafts; split documents longer than `capacity` and drop those too short to learn from."""
    remaining = iter(drafts)
    while batch := list(islice(remaining, DRAFTS_PER_BATCH)):
        texts = list(dict.fromkeys(part.text for draft in batch for part in draft if not part.is_token))
        ids = dict(zip(texts, encode_texts(tokenizer, texts), strict=True))
        for draft in batch:
            pieces = split_document(_assemble(draft, ids, tokenizer), capacity)
            yield from (piece for piece in pieces if len(piece) > 1)


def _assemble(draft: Sequence[Part], ids: dict[str, np.ndarray], tokenizer: Tokenizer) -> Document:
    encoded = [_token_ids(part, tokenizer) if part.is_token else ids[part.text] for part in draft]
    lengths = [len(piece) for piece in encoded]
    weights = np.repeat(np.array([part.weight for part in draft], dtype=np.float32), lengths)
    return Document(np.concatenate(encoded), weights)


def _token_ids(part: Part, tokenizer: Tokenizer) -> np.ndarray:
    token = tokenizer.token_to_id(part.text)
    if token is None:
        raise UsageError(f"the tokenizer has no token {part.text}; use one made by `train_tokenizer`")
    return np.array([token], dtype=np.int32)
