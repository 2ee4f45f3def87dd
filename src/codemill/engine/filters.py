"""Top-k, top-p and min-p, and drawing from what they leave. Shapes: B rows, V vocabulary, K candidates."""

from dataclasses import dataclass

import torch
from torch import Tensor

from codemill.engine.generation_config import Distribution
from codemill.engine.noise import gumbel

NUCLEUS_CANDIDATES = 1024
"""Without top-k, so many of the likeliest tokens are tried before the whole vocabulary is sorted."""

MIN_TEMPERATURE = 1e-30
"""Smaller ones are greedy to the last bit as well, but are 0 in fp32."""


@dataclass(frozen=True)
class Filters:
    """The filters of B rows as columns [B, 1]; `top_k`, 0 for none, is the same in all.

    Where logits tie, which of them are among the k likeliest depends on k, so rows with another k are another group:
    else what one request gets could depend on the others.
    """

    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    top_k: int

    @classmethod
    def build(cls, distributions: list[Distribution], device: torch.device) -> "Filters":
        """The filters of these rows, which share their top-k."""

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)[:, None]

        return cls(
            column([max(row.temperature, MIN_TEMPERATURE) for row in distributions]).float(),
            # 1 means off; as a threshold it could cut a tail whose probability rounds away.
            column([row.top_p if row.top_p < 1 else float("inf") for row in distributions]),
            column([row.min_p for row in distributions]),
            distributions[0].top_k,
        )

    def rows(self, index: Tensor) -> "Filters":
        """The filters of some of the rows [n]."""
        return Filters(self.temperature[index], self.top_p[index], self.min_p[index], self.top_k)


def filtered_candidates(logits: Tensor, filters: Filters, count: int) -> tuple[Tensor, Tensor]:
    """Logits [B, V] -> probabilities, fp64 and 0 where filtered out, and token ids, both [B, count], likeliest first.

    Order as in `transformers`: temperature, top-k, top-p (of what top-k leaves), min-p. Probabilities are those
    before top-p and min-p; they need not sum to 1.
    """
    values, token_ids = logits.topk(count)
    values = values.double() / filters.temperature
    if filters.top_k:
        probs = values[:, : filters.top_k].softmax(dim=-1)
        return _keep_likely(probs, filters), token_ids[:, : filters.top_k]
    below = _below_largest(logits) / filters.temperature
    probs = (values - values[:, :1] - below.logsumexp(dim=-1, keepdim=True)).exp()
    return _keep_likely(probs, filters), token_ids


def draw_filtered(logits: Tensor, filters: Filters, keys: Tensor) -> Tensor:
    """One token id for each row [B], drawn with the noise of `keys` [B, 2]."""
    vocab_size = logits.shape[-1]
    count = min(filters.top_k or NUCLEUS_CANDIDATES, vocab_size)
    probs, token_ids = filtered_candidates(logits, filters, count)
    tokens = _draw(probs, token_ids, keys)
    unfinished = (probs[:, -1] > 0).nonzero()[:, 0]  # the nucleus of these rows may go on
    if not filters.top_k and count < vocab_size and len(unfinished):
        probs, token_ids = filtered_candidates(logits[unfinished], filters.rows(unfinished), vocab_size)
        tokens[unfinished] = _draw(probs, token_ids, keys[unfinished])
    return tokens


def draw_unfiltered(logits: Tensor, temperature: Tensor, keys: Tensor) -> Tensor:
    """As `draw_filtered`, from the whole vocabulary; nothing needs sorting."""
    token_ids = torch.arange(logits.shape[-1], dtype=torch.int32, device=logits.device)[None]
    # Row by row on the CPU: a row and its noise fit the processor's cache, a batch of them does not.
    size = 1 if logits.device.type == "cpu" else logits.shape[0]
    parts = zip(logits.split(size), temperature.split(size), keys.split(size), strict=True)
    return torch.cat([(_below_largest(x) / heat + gumbel(key, token_ids)).argmax(dim=-1) for x, heat, key in parts])


def _draw(probs: Tensor, token_ids: Tensor, keys: Tensor) -> Tensor:
    """Token ids [B] out of candidates [B, K] with these probabilities, of which some are 0."""
    picked = (probs.log() + gumbel(keys, token_ids.int())).argmax(dim=-1, keepdim=True)
    return token_ids.gather(1, picked)[:, 0]


def _below_largest(logits: Tensor) -> Tensor:
    """Logits less the largest of their row, which is exact where it matters; divided by a small temperature the logits
    themselves would be rounded by more than the noise."""
    return logits - logits.amax(dim=-1, keepdim=True)


def _keep_likely(probs: Tensor, filters: Filters) -> Tensor:
    """Top-p and min-p over probabilities in falling order; the first always stays."""
    before = probs.cumsum(dim=-1) - probs
    kept = (before < filters.top_p) & (probs >= filters.min_p * probs[:, :1])
    return probs * kept
