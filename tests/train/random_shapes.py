"""Models and packed rows of shapes that nobody chose, and what has to hold of them. One seed is one case.

Shapes: R rows, T tokens, N learned tokens, E experts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from codemill.models import CausalLM
from codemill.train.batch import Batch
from codemill.train.objective import CrossEntropy
from codemill.train.policy import Policy
from models.reference import make_ours, make_reference
from train.packed import Packed

HEAD_DIMS = (16, 18, 24, 32, 34, 64, 80, 128, 256)


def draw_shape(rng: np.random.Generator) -> tuple[str, dict[str, Any]]:
    """A family, and what is changed of its tiny model in `models/reference.py`."""
    family = str(rng.choice(["qwen3", "qwen3_moe", "qwen3_next"]))
    layers, kv_heads, head_dim = int(rng.integers(1, 5)), int(rng.integers(1, 4)), int(rng.choice(HEAD_DIMS))
    shape: dict[str, Any] = {
        "vocab_size": int(rng.integers(11, 200)),
        "hidden_size": int(rng.choice([int(rng.integers(8, 80)), 32, 64])),
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * int(rng.integers(1, 5)),
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": int(rng.integers(8, 90)),
        "tie_word_embeddings": bool(rng.integers(2)),
        "attention_bias": bool(rng.integers(2)),
        "rms_norm_eps": float(rng.choice([1e-6, 1e-5])),
        "rope_parameters": _rope(rng, family, head_dim),
    }
    if family != "qwen3":
        shape |= _experts(rng, layers)
    if family == "qwen3_next":
        shape |= _hybrid(rng, layers)
    return family, shape


def _rope(rng: np.random.Generator, family: str, head_dim: int) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(rng.choice([1e4, 1e6, 5e5]))}
    if rng.random() < 0.3:
        rope |= {"rope_type": "yarn", "factor": float(rng.choice([2.0, 4.0])), "original_max_position_embeddings": 256}
    if family == "qwen3_next":
        # Shares that leave an odd number of frequencies fail in `transformers` with YaRN.
        rope["partial_rotary_factor"] = float(rng.choice([0.25, 0.5, 1.0] if head_dim % 8 == 0 else [1.0]))
    return rope


def _experts(rng: np.random.Generator, layers: int) -> dict[str, Any]:
    num_experts = int(rng.integers(3, 34))
    return {
        "num_experts": num_experts,
        "num_experts_per_tok": int(rng.integers(1, num_experts + 1)),
        "moe_intermediate_size": int(rng.choice([int(rng.integers(4, 50)), 32, 64])),
        "norm_topk_prob": bool(rng.integers(2)),
        "decoder_sparse_step": int(rng.choice([1, 1, 2])),
        "mlp_only_layers": [layer for layer in range(layers) if rng.random() < 0.2],
    }


def _hybrid(rng: np.random.Generator, layers: int) -> dict[str, Any]:
    key_heads = int(rng.integers(1, 4))
    layer_types = [str(rng.choice(["linear_attention", "full_attention"], p=[0.7, 0.3])) for _ in range(layers)]
    layer_types[int(rng.integers(layers))] = "full_attention"  # `transformers` wants one
    return {
        "layer_types": layer_types,
        "shared_expert_intermediate_size": int(rng.integers(4, 50)),
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": key_heads * int(rng.integers(1, 4)),
        "linear_key_head_dim": int(rng.integers(4, 40)),
        "linear_value_head_dim": int(rng.integers(4, 40)),
        "linear_conv_kernel_dim": int(rng.integers(2, 6)),
    }


@dataclass(frozen=True, eq=False)
class Case:
    """A reference, our model of the same weights, and packed rows; a batch has what is learned of them."""

    family: str
    shape: Mapping[str, Any]
    reference: transformers.PreTrainedModel
    model: CausalLM
    packed: Packed
    batch: Batch

    @classmethod
    def draw(cls, seed: int) -> "Case":
        rng = np.random.default_rng(seed)
        family, shape = draw_shape(rng)
        reference = make_reference(family, seed=seed, **shape)
        packed = _draw_rows(rng, shape["vocab_size"], seed)
        weights = torch.from_numpy(rng.choice([0.0, 0.3, 1.0], packed.input_ids.shape, p=[0.2, 0.2, 0.6]).astype("f4"))
        is_predicted = (packed.document_ids >= 0) & (packed.position_ids > 0)
        weights = torch.where(is_predicted, weights, 0.0)
        if not weights.any():
            weights = is_predicted.float()
        batch = Batch(packed.input_ids, packed.position_ids, packed.document_ids, weights)
        return cls(family, shape, reference, make_ours(reference).requires_grad_(True).train(), packed, batch)

    def loss(self, model: CausalLM, batches: Sequence[Batch], autocast: bool = False) -> float:
        """Of a step in these micro-batches; leaves gradients in the model."""
        objective, total = CrossEntropy(), 0.0
        counts = [objective.counts([batch]) for batch in batches]
        totals = {"cross_entropy": sum(each["cross_entropy"] for each in counts)}
        model.zero_grad()
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                part = objective.loss(Policy(model), batch, totals).value
            part.backward()
            total += part.item()
        return total

    def expected_loss(self, reference: nn.Module | None = None) -> float:
        """By the reference, or a copy of it, document by document; leaves gradients in it."""
        reference = self.reference if reference is None else reference
        reference.zero_grad()
        total = torch.zeros((), dtype=next(reference.parameters()).dtype)
        for place in self.packed.places:
            ids, weights = self.packed.input_ids[place], self.batch.weights[place]
            if len(ids) > 1:
                log_probs = reference(ids[None]).logits[0, :-1].log_softmax(-1)
                total = total - (log_probs.gather(1, ids[1:, None])[:, 0] * weights[1:]).sum()
        loss = total / self.batch.weights[:, 1:].double().sum()
        loss.backward()
        return loss.item()


def _draw_rows(rng: np.random.Generator, vocab_size: int, seed: int) -> Packed:
    """One to four rows of documents of 1 to 70 tokens; at least one has something to learn."""
    length = int(rng.integers(2, 141))
    rows = []
    for _ in range(int(rng.integers(1, 5))):
        lengths: list[int] = []
        while (left := length - sum(lengths)) > 0 and rng.random() < 0.85:
            lengths.append(min(left, int(rng.choice([1, int(rng.integers(1, 71)), int(rng.integers(1, 10))]))))
        rows.append(lengths or [min(2, length)])
    if all(count == 1 for lengths in rows for count in lengths):
        rows[0] = [2]
    packed = Packed.draw(rows, length, seed)
    return replace(packed, input_ids=packed.input_ids % vocab_size)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def worst_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest difference of two gradients, as a share of the largest number in it, and whose it is.

    A gradient that is missing is one of zeros: of what no token reached.
    """
    largest = max(each.abs().max().item() for each in expected.values())
    worst, where = 0.0, ""
    for name in found.keys() | expected.keys():
        mine, theirs = found.get(name), expected.get(name)
        mine = torch.zeros_like(theirs) if mine is None else mine
        theirs = torch.zeros_like(mine) if theirs is None else theirs
        # What is rounding alone, as of a key's bias, which moves all scores of a query alike, is measured by the rest.
        size = max(theirs.abs().max().item(), 1e-3 * largest, 1e-12)
        difference = (mine - theirs).abs().max().item() / size
        if not difference <= worst:
            worst, where = difference, name
    return worst, where


def micro_batches(batch: Batch) -> Iterator[Batch]:
    """One row each."""
    for row in range(len(batch.input_ids)):
        yield Batch(**{name: tensor[row : row + 1] for name, tensor in vars(batch).items()})


@contextmanager
def recomputing(model: CausalLM) -> Iterator[None]:
    model.recompute = True
    try:
        yield
    finally:
        model.recompute = False
