"""A tokenizer small enough to train in a moment, with Qwen's control tokens, and the real one where it lies at hand."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from chat.chat_checks import train_backend
from codemill.chat import Tokenizer


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_backend().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def small(small_folder: Path) -> Tokenizer:
    return Tokenizer.load(small_folder)


@pytest.fixture(scope="session")
def qwen_folder(shared_data: Path) -> Path:
    return shared_data / "tokenizer_qwen"


@pytest.fixture(scope="session")
def qwen(qwen_folder: Path) -> Tokenizer:
    return Tokenizer.load(qwen_folder)


@pytest.fixture
def work_budget() -> Callable[[float], AbstractContextManager[None]]:
    """Fails a block that takes longer than generously given seconds: what is quadratic takes minutes."""

    @contextmanager
    def budget(seconds: float) -> Iterator[None]:
        start = time.process_time()
        yield
        assert time.process_time() - start < seconds

    return budget
