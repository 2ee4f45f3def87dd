"""A small tokenizer and a few modules and tasks for the tests of this folder."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from codemill.chat import Tokenizer as ChatTokenizer
from codemill.chat.tokenizer_files import tokenizer_path
from codemill.data.bpe import train_tokenizer
from codemill.data.corpus import Module, stdlib_modules


@dataclass(frozen=True)
class FakeTask:
    """The fields of a synthetic task that the mixture reads."""

    prompt: str
    solution: str
    instruction: str


@pytest.fixture(scope="session")
def modules() -> list[Module]:
    wanted = {"heapq", "bisect", "textwrap", "queue", "csv", "json.decoder", "json.encoder", "shlex"}
    return [module for module in stdlib_modules() if module.name in wanted]


@pytest.fixture(scope="session")
def tokenizer(modules: list[Module]) -> Tokenizer:
    return train_tokenizer((module.text for module in modules), 600)


@pytest.fixture(scope="session")
def tasks() -> list[FakeTask]:
    return [
        FakeTask(
            prompt=f'def add_{n}(values: list[int]) -> list[int]:\n    """Add {n} to every value."""\n',
            solution=f"    result = []\n    for v in values:\n        result.append(v + {n})\n    return result\n",
            instruction=f"Write a function add_{n} that adds {n} to every value of a list.",
        )
        for n in range(200)
    ]


@pytest.fixture(scope="session")
def embedded_json() -> Path:
    """The tokenizer of the embedded model, for chats."""
    return tokenizer_path(None)


@pytest.fixture(scope="session")
def embedded() -> ChatTokenizer:
    return ChatTokenizer.load()
