"""Tensor names on disk. They are the parameters' own names, except that experts lie on disk one by one.

Shapes: E experts, F ffn, D model.
"""

import re
from collections.abc import Iterator

from torch import Tensor

from codemill.config import ModelConfig

SCALE_SUFFIX = "_scale_inv"
_EXPERTS = re.compile(r"(.+\.experts)\.(gate_up_proj|down_proj)")
_MTP_PREFIX = "mtp."
# Buffers that old versions of transformers wrote.
_IGNORED = re.compile(r".+\.rotary_emb\.inv_freq")


def disk_views(name: str, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors on disk that make up `parameter`: each one's name, and the view of `parameter` that it fills.

    Loading copies from disk into the views, saving writes the views out. Views of a meta tensor tell the shapes.
    """
    if _EXPERTS.fullmatch(name) is None or not parameter.is_floating_point():
        yield name, parameter  # packed experts stay stacked, so that they can be mapped
        return
    for index, expert in enumerate(parameter):
        yield from expert_views(name, index, expert)


def expert_views(name: str, index: int, expert: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors on disk that make up one expert of the stacked parameter `name`, as `disk_views`."""
    match = _EXPERTS.fullmatch(name)
    assert match is not None
    if match[2] == "down_proj":  # [D, F]
        yield f"{match[1]}.{index}.down_proj.weight", expert
    else:  # [2F, D]
        gate, up = expert.chunk(2)
        yield f"{match[1]}.{index}.gate_proj.weight", gate
        yield f"{match[1]}.{index}.up_proj.weight", up


def is_mtp(name: str) -> bool:
    """Whether a tensor on disk belongs to the multi-token prediction head of Qwen3-Next."""
    return name.startswith(_MTP_PREFIX)


def is_ignored(name: str, config: ModelConfig) -> bool:
    """Whether a tensor on disk has no part in the network: the MTP head, and the copy of a tied head."""
    tied_head = config.tie_word_embeddings and name == "lm_head.weight"
    return tied_head or is_mtp(name) or _IGNORED.fullmatch(name) is not None
