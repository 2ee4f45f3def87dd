"""What a forward pass knows besides the tokens; computed once, then handed to every layer."""

from collections.abc import Sequence
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
    the right. `document_ids` [B, T] marks packed documents (equal ids attend to each other), for training only.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    num_tokens: int
    cos: Tensor  # [B or 1, 1, T, R] with R rotated dims
    sin: Tensor
    device: torch.device
    document_ids: Tensor | None = None

    @classmethod
    def build(
        cls,
        config: ModelConfig,
        input_ids: Tensor,
        cache: Cache | None = None,
        lengths: Sequence[int] | None = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> "ForwardContext":
        """Positions continue where each row of `cache` ends, unless `position_ids` [B, T] says otherwise."""
        batch_size, num_tokens = input_ids.shape
        starts = tuple(cache.lengths) if cache is not None else (0,) * batch_size
        device = input_ids.device
        if position_ids is None:
            rows = starts if len({*starts}) > 1 else starts[:1]
            position_ids = torch.tensor(rows, device=device)[:, None] + torch.arange(num_tokens, device=device)
        cos, sin = rotary_tables(config, position_ids)
        all_real = (num_tokens,) * batch_size
        return cls(starts, all_real if lengths is None else tuple(lengths), num_tokens, cos, sin, device, document_ids)

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
        lengths = torch.tensor(self.lengths, device=self.device)
        return torch.arange(self.num_tokens, device=self.device) < lengths[:, None]

    @cached_property
    def attention_mask(self) -> Tensor | None:
        """Bool, broadcastable to [B, 1, T, S]: which slots a new token sees. None where the shape alone says it."""
        if self.document_ids is not None:
            same = self.document_ids[:, None, :, None] == self.document_ids[:, None, None, :]
            return same & torch.ones(self.num_tokens, self.num_tokens, dtype=torch.bool, device=self.device).tril()
        if self.is_fresh or (self.num_tokens == 1 and len({*self.starts}) == 1):
            return None
        starts = torch.tensor(self.starts, device=self.device)
        positions = starts[:, None] + torch.arange(self.num_tokens, device=self.device)  # [B, T]
        slots = torch.arange(self.num_slots, device=self.device)
        return (slots <= positions[..., None])[:, None]
