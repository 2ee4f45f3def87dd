"""The masks of a batch's grammars as one bool tensor."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from codemill.engine.grammar import GrammarState


def allowed_tokens(states: Sequence[GrammarState | None], vocab_size: int, device: torch.device | str) -> Tensor:
    """Which ids may come next in each sequence: bool [B, V] on `device`, for `logits.masked_fill(~mask, -inf)`.

    None is a sequence without a grammar, for which all are allowed. The masks travel to the device as bits.
    """
    words = np.full((len(states), -(-vocab_size // 32)), -1, dtype=np.int32)
    for row, state in zip(words, states, strict=True):
        if state is not None:
            state.fill_mask(row)
    packed = torch.from_numpy(words.view(np.uint8)).to(device)  # [B, W * 4]
    bits = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=device)
    allowed = packed[:, :, None].bitwise_and(bits).ne(0)  # [B, W * 4, 8]
    return allowed.flatten(1)[:, :vocab_size]
