"""A tiny model and packed rows of random tokens."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codemill.chat import Tokenizer
from codemill.config import ModelConfig
from codemill.data.packing import Document, PackedRows, pack
from codemill.models import CausalLM
from codemill.models.initialize import initialize
from codemill.models.save import save_pretrained
from codemill.train.config import LoopConfig, ModelSection, OptimizerConfig
from codemill.train.loop import Trainer
from codemill.train.objective import CrossEntropy
from codemill.train.policy import Policy
from codemill.train.source import PackedSource, validation_batches

VOCAB_SIZE = 61
CONTEXT = 24
SHAPE = ModelSection(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    intermediate_size=24,
    max_position_embeddings=CONTEXT,
)
LOOP = LoopConfig(steps=6, rows_per_step=4, rows_per_micro_batch=2, evaluate_every=3, checkpoint_every=2)
OPTIMIZER = OptimizerConfig(lr=1e-2, matrix_lr=1e-2, warmup_steps=2)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As torchrun gives each of its processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_model(seed: int = 0) -> CausalLM:
    model = CausalLM(replace(SHAPE.build(VOCAB_SIZE), dtype="float32"))
    initialize(model, seed)
    return model


def make_rows(num_documents: int, seed: int = 0) -> PackedRows:
    """Documents of 3 to 15 tokens; some tokens have a smaller weight."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 16, num_documents)
    documents = [Document.of(rng.integers(0, VOCAB_SIZE, n), rng.choice([0.0, 0.3, 1.0], n)) for n in lengths]
    return pack(documents, CONTEXT, pad_id=0)


def make_trainer(directory: Path, loop: LoopConfig = LOOP, seed: int = 0) -> Trainer:
    """A new process's view of the run in `directory`."""
    source = PackedSource(make_rows(30), loop)
    validation = {"held_out": validation_batches(make_rows(5, seed=1), loop)}
    return Trainer(Policy(make_model(seed)), CrossEntropy(), source, validation, loop, OPTIMIZER, directory)


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return make_trainer(tmp_path)


def save_model(directory: Path, seed: int = 0, scale: float = 1.0, norm: float = 1.0, **changes: Any) -> None:
    """A tiny model with the embedded model's tokenizer; scale and norm make it surer of what it says."""
    shape = {
        "model_type": "qwen3",
        "vocab_size": 4096,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 24,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    model = CausalLM(ModelConfig.from_dict({**shape, **changes}, "test"))
    initialize(model, seed)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(scale)
        model.model.norm.weight.mul_(norm)
    save_pretrained(model.to(torch.bfloat16), directory)
    Tokenizer.load(None).save(directory)
