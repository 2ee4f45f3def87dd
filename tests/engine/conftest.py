"""A tiny tokenizer, and tiny models of the three families behind an `LLM`, for the tests of this folder."""

import pytest
import transformers

from codemill import LLM
from codemill.chat import Tokenizer
from codemill.data.bpe import save_tokenizer, train_tokenizer
from models.reference import FAMILIES, make_ours, make_reference

VOCAB_SIZE = 320
TEXT = [
    "def add(first, second):\n    return first + second\n\n\nfor value in values:\n    print(value, end='')\n",
    "Grüße, 世界! 🙂 The stop string comes next, then nothing else: stop here and now.\n",
    "class Sequence:\n    def append(self, token):\n        self.tokens.append(token)\n        return None\n",
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(TEXT, VOCAB_SIZE), folder)
    return Tokenizer.load(folder)


@pytest.fixture(scope="session", params=list(FAMILIES))
def reference(request: pytest.FixtureRequest) -> transformers.PreTrainedModel:
    return make_reference(request.param, vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="session")
def llm(reference: transformers.PreTrainedModel, tokenizer: Tokenizer) -> LLM:
    """One for each family; its text is gibberish, and often no UTF-8."""
    return LLM.from_parts(make_ours(reference), tokenizer)


@pytest.fixture(scope="session")
def dense_llm(tokenizer: Tokenizer) -> LLM:
    return LLM.from_parts(
        make_ours(make_reference("qwen3", vocab_size=VOCAB_SIZE, max_position_embeddings=2048)), tokenizer
    )
