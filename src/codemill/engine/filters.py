"""Top-k, top-p and min-p, and drawing from what they leave. Shapes: B rows, V vocabulary, K candidates."""

from dataclasses import dataclass

import torch
from torch import Tensor

from codemill.engine.generation_config import Distribution

NUCLEUS_CANDIDATES = 1024
"""Without top-k, so many of the likeliest tokens are tried before the whole vocabulary is sorted."""


@dataclass(frozen=True)
class Filters:
    """The filters of B rows as columns [B, 1]; `top_k` is 0 in all rows or in none."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    max_top_k: int

    @classmethod
    def build(cls, distributions: list[Distribution], device: torch.device) -> "Filters":
        """The filters of these rows, all with top-k or all without."""

        def column(values: list[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        return cls(
            column([row.temperature for row in distributions], torch.float32),
            column([row.top_k for row in distributions], torch.long),
            # 1 means off; as a threshold it could cut a tail whose probability rounds away.
            column([row.top_p if row.top_p < 1 else float("inf") for row in distributions], torch.float64),
            column([row.min_p for row in distributions], torch.float64),
            max(row.top_k for row in distributions),
        )


def filtered_candidates(logits: Tensor, filters: Filters) -> tuple[Tensor, Tensor]:
    """Logits [B, V] -> probabilities, fp64 and 0 where filtered out, and token ids, both [B, K], likeliest first.

    Order as in `transformers`: temperature, top-k, top-p (of what top-k leaves), min-p. Probabilities are those
    before top-p and min-p; they need not sum to 1.
    """
    vocab_size = logits.shape[-1]
    if filters.max_top_k:
        return _keep_top_k(logits, filters, min(filters.max_top_k, vocab_size))
    scaled = logits / filters.temperature
    count = min(NUCLEUS_CANDIDATES, vocab_size)
    probs, token_ids = _keep_nucleus(scaled, filters, count)
    if count < vocab_size and (probs[:, -1] > 0).any():  # some row may go on beyond the last candidate
        return _keep_nucleus(scaled, filters, vocab_size)
    return probs, token_ids


def draw_filtered(logits: Tensor, filters: Filters, uniforms: Tensor) -> Tensor:
    """One token id for each row [B], by inverting the cumulative distribution at `uniforms` [B, 1], fp64 in [0, 1)."""
    probs, token_ids = filtered_candidates(logits, filters)
    return token_ids.gather(1, _invert(probs, uniforms))[:, 0]


def draw_unfiltered(logits: Tensor, temperature: Tensor, uniforms: Tensor) -> Tensor:
    """As `draw_filtered`, from the whole vocabulary; nothing needs sorting."""
    return _invert((logits / temperature).softmax(dim=-1).double(), uniforms)[:, 0]


def _keep_top_k(logits: Tensor, filters: Filters, count: int) -> tuple[Tensor, Tensor]:
    values, token_ids = logits.topk(count)
    rank = torch.arange(count, device=logits.device)
    values = (values.double() / filters.temperature).masked_fill(rank >= filters.top_k, float("-inf"))
    return _keep_likely(values.softmax(dim=-1), filters), token_ids


def _keep_nucleus(scaled: Tensor, filters: Filters, count: int) -> tuple[Tensor, Tensor]:
    values, token_ids = scaled.topk(count)
    probs = (values.double() - scaled.logsumexp(dim=-1, keepdim=True)).exp()
    return _keep_likely(probs, filters), token_ids


def _keep_likely(probs: Tensor, filters: Filters) -> Tensor:
    """Top-p and min-p over probabilities in falling order; the first always stays."""
    before = probs.cumsum(dim=-1) - probs
    kept = (before < filters.top_p) & (probs >= filters.min_p * probs[:, :1])
    return probs * kept


def _invert(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Columns [B, 1] at which the cumulative sum of `probs` [B, K] first exceeds `uniforms` of its total."""
    cumulative = probs.cumsum(dim=-1)
    picked = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    return picked.clamp(max=probs.shape[-1] - 1)  # beyond only where probabilities are NaN
