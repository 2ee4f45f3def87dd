"""What `training_speed.py` trains and on what: shapes of models, and conversations as token ids."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from codemill.config import ModelConfig

Conversation = tuple[list[int], int]
"""Token ids, and from which of them on they are learned."""

_COMMON = {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 4096, "tie_word_embeddings": True}
_ATTENTION = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
MODELS: Mapping[str, Mapping[str, Any]] = {
    # Qwen3-0.6B with 4 of its 28 layers.
    "dense": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 4,
        "vocab_size": 151_936,
        **_ATTENTION,
        **_COMMON,
    },
    # The same layers, 6 of them, under a head so small that they are nearly all of the work.
    "dense, small vocabulary": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 6,
        "vocab_size": 8_192,
        **_ATTENTION,
        **_COMMON,
    },
    "moe, 64 experts": {
        "model_type": "qwen3_moe",
        "hidden_size": 768,
        "intermediate_size": 2048,
        "moe_intermediate_size": 384,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 8_192,
        **_COMMON,
    },
}


@dataclass(frozen=True)
class Case:
    """A model, its precision, and conversations: `mixed` in length, or all `equal` to a row (no padding anywhere).

    `learned`: the share of a conversation that counts. Both libraries get the same ids and the same tokens to learn,
    in steps of about `rows_per_step` rows of `row` tokens.
    """

    model: str
    precision: str
    lengths: str = "mixed"
    learned: float = 0.5
    row: int = 1024
    rows_per_step: int = 2
    recompute: bool = False

    @property
    def title(self) -> str:
        kind = "mixed lengths" if self.lengths == "mixed" else "equal lengths"
        return f"{self.model}; {self.precision}; {kind}, {self.learned:.0%} learned"

    @property
    def config(self) -> ModelConfig:
        return ModelConfig.from_dict(dict(MODELS[self.model]), self.model)

    def conversations(self, count: int = 400) -> list[Conversation]:
        """Random ids; mixed lengths are log-normal around 200 tokens, as short instructions with code are."""
        rng = random.Random(0)
        vocabulary = range(100, MODELS[self.model]["vocab_size"])
        lengths = [self.row if self.lengths == "equal" else self._length(rng) for _ in range(count)]
        return [(rng.choices(vocabulary, k=length), max(1, round(length * (1 - self.learned)))) for length in lengths]

    def _length(self, rng: random.Random) -> int:
        return min(self.row, max(16, round(rng.lognormvariate(5.3, 0.7))))
