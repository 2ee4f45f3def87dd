"""What a forward pass knows besides the tokens; computed once, then handed to every layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from codemill.config import ModelConfig
from codemill.models.cache import Cache
from codemill.models.rope import rotary_tables


@dataclass(frozen=True)
class ForwardContext:
    """One forward pass over `T` new tokens in each of `B` rows.

    `starts[b]` tokens of row b were computed before; `lengths[b]` of its new tokens are real, the rest is padding on
    the right. `documents` are the lengths of packed documents, row after row; they do not see each other.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    num_tokens: int
    cos: Tensor  # [B or 1, T, 1, R] with R rotated dims; see `rotary_tables`
    sin: Tensor
    documents: tuple[int, ...] = ()

    @classmethod
    def build(
        cls,
        config: ModelConfig,
        dtype: torch.dtype,
        input_ids: Tensor,
        cache: Cache | None = None,
        lengths: Sequence[int] | None = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> "ForwardContext":
        """Positions continue where each row of `cache` ends, unless `position_ids` [B, T] says otherwise.

        A run of equal `document_ids` [B, T] is a document.
        """
        batch_size, num_tokens = input_ids.shape
        starts = tuple(cache.lengths) if cache is not None else (0,) * batch_size
        lengths = (num_tokens,) * batch_size if lengths is None else tuple(lengths)
        if position_ids is None:
            rows = starts if len({*starts}) > 1 else starts[:1]
            first = torch.tensor(rows, device=input_ids.device)
            position_ids = first[:, None] + torch.arange(num_tokens, device=input_ids.device)
        cos, sin = rotary_tables(config, position_ids, dtype)
        documents = () if document_ids is None else _document_lengths(document_ids)
        return cls(starts, lengths, num_tokens, cos, sin, documents)

    @property
    def has_padding(self) -> bool:
        return min(self.lengths) < self.num_tokens

    @property
    def is_fresh(self) -> bool:
        """Whether no row has a past."""
        return max(self.starts) == 0

    @property
    def num_slots(self) -> int:
        """Cache slots that some row of this pass can see."""
        return max(start + length for start, length in zip(self.starts, self.lengths, strict=True))

    @cached_property
    def real(self) -> Tensor:
        """Which of the new tokens are no padding, bool [B, T]."""
        device = self.cos.device
        return torch.arange(self.num_tokens, device=device) < torch.tensor(self.lengths, device=device)[:, None]

    @cached_property
    def cache_mask(self) -> Tensor | None:
        """Which cache slots a new token sees, bool [B, 1, T, S]; None where every token sees every slot."""
        if self.num_tokens == 1 and len({*self.starts}) == 1:
            return None
        device = self.cos.device
        positions = torch.tensor(self.starts, device=device)[:, None] + torch.arange(self.num_tokens, device=device)
        slots = torch.arange(self.num_slots, device=device)
        return (slots <= positions[..., None])[:, None]

    def for_each_document(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """function(*inputs), documents apart: each call gets [1, n, ...] of every input [B, T, ...].

        Packed documents thus compute what they would alone, and cannot see each other.
        """
        if not self.documents:
            return function(*inputs)
        # One split for all: slicing each document out would cost a full-size gradient for every slice.
        pieces = zip(*(x.flatten(0, 1)[None].split(self.documents, dim=1) for x in inputs), strict=True)
        together = torch.cat([function(*piece) for piece in pieces], dim=1)
        return together.view(inputs[0].shape[0], self.num_tokens, *together.shape[2:])


def _document_lengths(document_ids: Tensor) -> tuple[int, ...]:
    """Lengths of the runs of equal ids in the rows of [B, T], in order; a row's end ends a run."""
    lengths: list[int] = []
    for ids in document_ids.cpu():
        lengths += ids.unique_consecutive(return_counts=True)[1].tolist()
    return tuple(lengths)
