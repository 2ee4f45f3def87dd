"""How much of a model is trained, by kinds of modules: adapters that miss the experts are to be seen at once."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor

from codemill.kernels.packed_matrix import PackedMatrix
from codemill.models.quantized import named_weights
from codemill.train.low_rank_weights import LowRankWeights
from codemill.train.policy import Policy

# The first whose text is a part of a parameter's name.
_CLASSES = (
    (".experts.", "experts"),
    (".shared_expert.", "shared expert"),
    (".gate.", "router"),
    (".shared_expert_gate.", "router"),
    ("norm.", "norms"),
    ("linear_attn.", "DeltaNet"),
    ("self_attn.", "attention"),
    (".mlp.", "MLP"),
    ("embed_tokens", "embedding"),
    ("lm_head", "head"),
)


@dataclass(frozen=True)
class ClassShare:
    """One kind of modules: the parameters of the model, and how many are trained, beside them or of them."""

    name: str
    parameters: int
    trainable: int

    @property
    def share(self) -> float:
        return self.trainable / self.parameters if self.parameters else 1.0


def trainable_share(policy: Policy) -> list[ClassShare]:
    """One for each kind that `policy` has, in the order of the model, and the total. It may be on the meta device."""
    parameters = _sums((name, _numel(weight)) for name, weight in named_weights(policy.model).items())
    trainable = _sums(_trained(policy))
    rows = [ClassShare(name, parameters.get(name, 0), trainable.get(name, 0)) for name in {**parameters, **trainable}]
    return [*rows, ClassShare("total", sum(parameters.values()), sum(trainable.values()))]


def format_share(rows: Iterable[ClassShare]) -> str:
    """A table for people to read."""
    lines = [f"{'':<14}{'parameters':>16}{'trainable':>16}{'share':>10}"]
    lines += [f"{row.name:<14}{row.parameters:>16,}{row.trainable:>16,}{row.share:>10.3%}" for row in rows]
    return "\n".join(lines)


def _trained(policy: Policy) -> Iterator[tuple[str, int]]:
    if policy.adapter is None:
        yield from ((name, each.numel()) for name, each in policy.model.named_parameters() if each.requires_grad)
        return
    for module in policy.adapter.modules():
        if isinstance(module, LowRankWeights):
            yield module.target.name + ".", sum(each.numel() for each in module.parameters())


def _sums(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, count in counts:
        kind = next((kind for part, kind in _CLASSES if part in name), "other")
        sums[kind] = sums.get(kind, 0) + count
    return sums


def _numel(weight: PackedMatrix | Tensor) -> int:
    return prod(weight.shape)
