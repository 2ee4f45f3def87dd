"""The section `[lora]` of a training configuration."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from codemill.errors import UsageError

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraSection:
    """Train small matrices beside the model's weights, which stay as they are (LoRA, QLoRA, DoRA).

    The update of a weight [out, in] is alpha / rank * B A with A [rank, in] and B [out, rank]; with `rslora` alpha /
    sqrt(rank) (arXiv:2312.03732). `dropout` takes away that share of A's inputs. `dora` also trains the length of each
    row of the changed weight (arXiv:2402.09353).

    targets: "all-linear", or the last parts of modules' names; "experts" and "router" are those of
    mixture-of-experts layers. rank_pattern and alpha_pattern: another rank or alpha for names that end in a pattern, as
    in PEFT. quantization: of the frozen model, as `codemill quantize` takes it ("int4", "int8"); empty for none.
    init_from: a directory with an adapter to continue; it then says ranks, scales and targets. per_expert: save the
    updates of experts one by one, as vLLM reads them, and not stacked as PEFT has them.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    rslora: bool = False
    dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    quantization: str = ""
    init_from: str = ""
    per_expert: bool = False

    def __post_init__(self) -> None:
        for key, rank in {"rank": self.rank, **self.rank_pattern}.items():
            if rank < 1:
                raise UsageError(f"lora: {key} = {rank}: a rank must be at least 1")
        if not self.alpha > 0:
            raise UsageError(f"lora.alpha = {self.alpha} must be above 0: the adapter would change nothing")
        for key in ("rank_pattern", "alpha_pattern"):
            for pattern in getattr(self, key):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise UsageError(f"lora.{key}: {pattern!r} is no regular expression ({error})") from None
        if not self.dropout < 1:
            raise UsageError(f"lora.dropout = {self.dropout} must be below 1")
        if not self.targets:
            raise UsageError("lora.targets is empty: leave it out for all linear layers")
