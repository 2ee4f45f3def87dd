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
_TAKEN_FOR_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj")
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


def needs_parameter(target: Target, model: CausalLM) -> bool:
    """Whether PEFT adapts it only as a parameter, which has no dropout and no DoRA there.

    In models with experts PEFT takes "gate_proj", "up_proj", "down_proj" and "gate" among the modules for those of the
    experts, whatever else is called so.
    """
    leaf = target.module.rpartition(".")[2]
    return bool(target.parameter) or (model.config.moe is not None and leaf in _TAKEN_FOR_EXPERTS)


def peft_names(targets: Sequence[Target], model: CausalLM) -> tuple[list[str], list[str]]:
    """PEFT's `target_modules` and `target_parameters` for these targets: ends of names."""
    modules: dict[str, list[bool]] = {}
    parameters: dict[str, list[bool]] = {}
    chosen = {target.name for target in targets}
    for target in all_targets(model):
        leaf, is_chosen = target.module.rpartition(".")[2], target.name in chosen
        if target.parameter:
            parameters.setdefault(f"mlp.experts.{target.parameter}", []).append(is_chosen)
        elif needs_parameter(target, model):
            in_layer = target.module.split(".", 3)[-1]
            parameters.setdefault(f"{in_layer}.weight", []).append(is_chosen)
        else:
            modules.setdefault(leaf, []).append(is_chosen)
    return _chosen(modules), _chosen(parameters)


def _chosen(names: dict[str, list[bool]]) -> list[str]:
    return [name for name, are_chosen in names.items() if any(are_chosen)]


def _is_in_all(target: Target) -> bool:
    return target.leaf not in _NOT_IN_ALL
