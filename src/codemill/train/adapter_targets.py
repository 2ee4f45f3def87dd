"""What of a network an adapter may change. Shapes: E experts, D model, F ffn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from codemill.errors import UsageError
from codemill.kernels.linear import Linear
from codemill.kernels.quantized_linear import QuantizedEmbedding, QuantizedLinear
from codemill.models.decoder import CausalLM
from codemill.models.moe import Experts
from codemill.train.lora_config import ALL_LINEAR

EXPERTS, ROUTER, HEAD, EMBEDDING = "experts", "router", "lm_head", "embed_tokens"
_NOT_IN_ALL = (ROUTER, "shared_expert_gate", HEAD, EMBEDDING)


@dataclass(frozen=True)
class Target:
    """One weight: of the module `module`; `parameter` says which of a layer's experts', and is empty elsewhere."""

    module: str
    shape: tuple[int, ...]  # [out, in], of experts [E, out, in], of embeddings [D, vocab]
    parameter: str = ""
    is_embedding: bool = False

    @property
    def name(self) -> str:
        return f"{self.module}.{self.parameter}" if self.parameter else self.module

    @property
    def leaf(self) -> str:
        """What a configuration calls it."""
        leaf = self.module.rpartition(".")[2]
        return ROUTER if leaf == "gate" else leaf

    @property
    def numel(self) -> int:
        return prod(self.shape)


def all_targets(model: CausalLM) -> Iterator[Target]:
    """Everything in `model`, which may be packed, or on the meta device, that can be adapted."""
    for name, module in model.named_modules():
        if isinstance(module, Linear | QuantizedLinear):
            yield Target(name, (module.out_features, module.in_features))
        elif isinstance(module, nn.Embedding | QuantizedEmbedding):
            yield Target(name, (module.embedding_dim, module.num_embeddings), is_embedding=True)
        elif isinstance(module, Experts):
            for parameter in ("gate_up_proj", "down_proj"):
                yield Target(name, tuple(module.matrices(parameter).shape), parameter)
    if model.config.tie_word_embeddings:  # then the head is no module of its own
        yield Target(HEAD, (model.config.vocab_size, model.config.hidden_size))


def find_targets(model: CausalLM, wanted: Sequence[str]) -> list[Target]:
    """What `wanted` names. Raises UsageError for a name that nothing in the model has."""
    there = list(all_targets(model))
    leaves = list(dict.fromkeys(target.leaf for target in there))
    for name in wanted:
        if name not in leaves and name != ALL_LINEAR:
            raise UsageError(
                f"lora.targets: this model has no {name!r}; it has {', '.join(leaves)}, and {ALL_LINEAR!r} for all of "
                f"them but {', '.join(leaf for leaf in leaves if leaf in _NOT_IN_ALL)}"
            )
    return [target for target in there if target.leaf in wanted or (ALL_LINEAR in wanted and _is_in_all(target))]


def module_names(targets: Sequence[Target], model: CausalLM) -> list[str]:
    """How PEFT's `target_modules` says them: a leaf where all of that name are adapted, else whole names."""
    named: list[str] = []
    chosen = {target.module for target in targets if not target.parameter}
    by_leaf: dict[str, list[str]] = {}
    for target in all_targets(model):
        if not target.parameter:
            by_leaf.setdefault(target.module.rpartition(".")[2], []).append(target.module)
    for leaf, modules in by_leaf.items():
        mine = [module for module in modules if module in chosen]
        named += [leaf] if len(mine) == len(modules) else mine
    return named


def _is_in_all(target: Target) -> bool:
    return target.leaf not in _NOT_IN_ALL
