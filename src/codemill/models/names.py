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
    match = _EXPERTS.fullmatch(name)
    if match is None:
        yield name, parameter
    elif match[2] == "down_proj":
        for index, down in enumerate(parameter):  # [D, F]
            yield f"{match[1]}.{index}.down_proj.weight", down
    else:
        for index, expert in enumerate(parameter):  # [2F, D]
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
