"""Tensor names on disk. They are the parameters' own names, except that experts lie on disk one by one.

Shapes: E experts, F ffn, D model.
"""

import re
from collections.abc import Iterator

from torch import Tensor

from codemill.config import ModelConfig

SCALE_SUFFIX = "_scale_inv"
_EXPERTS = re.compile(r"(.+\.experts)\.(gate_up_proj|down_proj)")
# The multi-token prediction head of Qwen3-Next, and buffers that old versions of transformers wrote.
_IGNORED = re.compile(r"mtp\..+|.+\.rotary_emb\.inv_freq")


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


def is_ignored(name: str, config: ModelConfig) -> bool:
    """Whether a tensor on disk has no part in the network: MTP layers, and the copy of a tied head."""
    return _IGNORED.fullmatch(name) is not None or (config.tie_word_embeddings and name == "lm_head.weight")
