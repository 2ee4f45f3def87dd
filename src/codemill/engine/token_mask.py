"""What the grammars of a batch say of its next tokens. Shapes: B rows, V vocabulary, W words of 32 bits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codemill.engine.grammar import GrammarState
from codemill.errors import CodemillError


@dataclass(frozen=True)
class GrammarAnswers:
    """For each row one of: the id that must come next, an error of its grammar, or a mask int32 [W] of what may come.

    choosing: the rows of `masks` [n, W].
    """

    forced: Mapping[int, int]
    errors: Mapping[int, CodemillError]
    choosing: Sequence[int]
    masks: NDArray[np.int32]


def ask_grammars(states: Mapping[int, GrammarState], vocab_size: int) -> GrammarAnswers:
    """What may come next in the rows that have a grammar; one that gives up concerns its own row only."""
    forced: dict[int, int] = {}
    errors: dict[int, CodemillError] = {}
    masks: dict[int, NDArray[np.int32]] = {}
    for row, state in states.items():
        try:
            tokens = state.forced_tokens()
            if tokens:
                forced[row] = tokens[0]
            else:
                mask = _all_allowed(1, vocab_size)[0]
                state.fill_mask(mask)
                masks[row] = mask
        except CodemillError as error:
            errors[row] = error
    return GrammarAnswers(forced, errors, list(masks), np.array(list(masks.values()), dtype=np.int32))


def allowed_tokens(states: Sequence[GrammarState | None], vocab_size: int, device: torch.device | str) -> Tensor:
    """Which ids may come next in each sequence: bool [B, V] on `device`, for `logits.masked_fill(~mask, -inf)`.

    None is a sequence without a grammar, for which all are allowed.
    """
    masks = _all_allowed(len(states), vocab_size)
    for row, state in zip(masks, states, strict=True):
        if state is not None:
            state.fill_mask(row)
    return unpack(masks, vocab_size, device)


def unpack(masks: NDArray[np.int32], vocab_size: int, device: torch.device | str) -> Tensor:
    """Masks int32 [B, W] as bool [B, V] on `device`. They travel there as bits."""
    packed = torch.from_numpy(masks.view(np.uint8)).to(device)  # [B, W * 4]
    bits = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=device)
    allowed = packed[:, :, None].bitwise_and(bits).ne(0)  # [B, W * 4, 8]
    return allowed.flatten(1)[:, :vocab_size]


def _all_allowed(num_rows: int, vocab_size: int) -> NDArray[np.int32]:
    return np.full((num_rows, -(-vocab_size // 32)), -1, dtype=np.int32)
