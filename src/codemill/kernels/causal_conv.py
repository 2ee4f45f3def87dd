"""Causal depthwise convolution with a carried window. Shapes: B batch, T tokens, C channels, W width."""

import torch
from torch import Tensor


def causal_conv(x: Tensor, weight: Tensor, window: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """out[t] = sum over j of weight[:, j] * x[t - (W - 1) + j], summed in fp32.

    x [B, T, C], weight [C, W], window [B, W - 1, C] (the inputs before x; zeros at a sequence's start) -> [B, T, C].
    With `document_ids` [B, T] nothing crosses a document's start.
    """
    num_tokens, width = x.shape[1], weight.shape[1]
    history = torch.cat((window, x), dim=1)  # [B, W - 1 + T, C]
    out = x.float() * weight[:, -1].float()
    for back in range(1, width):
        tap = history[:, width - 1 - back : width - 1 - back + num_tokens].float()
        if document_ids is not None:
            tap = tap * _same_document(document_ids, back)[..., None]
        out = out + tap * weight[:, -1 - back].float()
    return out.to(x.dtype)


def next_window(x: Tensor, window: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The last W - 1 inputs of each row once `lengths[b]` tokens of x have been consumed, [B, W - 1, C]."""
    history = torch.cat((window, x), dim=1)
    size = window.shape[1]
    return torch.stack([history[row, length : length + size] for row, length in enumerate(lengths)])


def _same_document(document_ids: Tensor, back: int) -> Tensor:
    """Whether the token `back` places earlier exists and belongs to the same document, bool [B, T]."""
    same = torch.zeros_like(document_ids, dtype=torch.bool)
    same[:, back:] = document_ids[:, back:] == document_ids[:, :-back]
    return same
