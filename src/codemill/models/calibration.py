"""Quantises a model with the help of a text: a walk over its layers, each of which shows what its matrices are given.

Each layer sees what the quantised ones before it give, so that it can make up for them too. In memory are the hidden
states of the text, the statistics of one layer, and its weights once more. See docs/quantization_quality.md.

Shapes: B batch, T tokens, D model, K inputs.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from codemill.config import PackedFormat
from codemill.errors import CodemillError, UsageError
from codemill.kernels.experts import route
from codemill.kernels.linear import linear
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.models.context import ForwardContext
from codemill.models.decoder import CausalLM, DecoderLayer
from codemill.models.gptq import Statistics, fill_calibrated
from codemill.models.moe import SparseMoe
from codemill.models.quantized import matrices

_HEAD = "lm_head.weight"
_SHARED_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}

Formats = Callable[[str], PackedFormat | None]
NamedMatrix = tuple[str, PackedMatrix]


@torch.no_grad()
def quantize_layerwise(model: CausalLM, batches: Sequence[Tensor], format_of: Formats) -> Iterator[NamedMatrix]:
    """The name and the packed form of each projection and stack of experts, layer by layer; an untied head comes last.

    batches: token ids [B, T] of text like what the model is meant for, some 30,000 tokens. format_of: how a weight is
    to be packed, None to leave it; `QuantizationConfig.format_of` is one. Embeddings, and a head that is tied to them,
    are not among the results. The model, which is not quantised, stays as it is. Raises UsageError if there are no
    batches, and CodemillError naming a weight that cannot be quantised.
    """
    if not batches:
        raise UsageError("there is no text to calibrate with: give some")
    hidden = [model.model.embed_tokens(ids) for ids in batches]
    contexts = [ForwardContext.build(model.config, model.dtype, ids, None, None, None, ()) for ids in batches]
    for index, layer in enumerate(model.model.layers):
        assert isinstance(layer, DecoderLayer)
        walk = _LayerWalk(layer, f"model.layers.{index}.", format_of)
        walk.observe(hidden, contexts)
        yield from walk.quantize()
        hidden = walk.advance(hidden, contexts)
    packed = format_of(_HEAD)
    if packed is not None and not model.config.tie_word_embeddings:
        statistics = Statistics()
        for x in hidden:
            statistics.add(model.model.norm(x))
        yield _HEAD, _quantize(_HEAD, model.lm_head.weight, packed, statistics)


class CalibratedWeights:
    """The packed matrices of `quantize_layerwise` by name, for those who ask for them one at a time.

    Asking in the order of the network keeps the matrices of no more than one layer.
    """

    def __init__(self, model: CausalLM, batches: Sequence[Tensor], format_of: Formats) -> None:
        self._walk = quantize_layerwise(model, batches, format_of)
        self._ready: dict[str, PackedMatrix] = {}

    def take(self, name: str) -> PackedMatrix:
        """The matrix, which is then forgotten. Raises KeyError for one that is taken already, or is none of them."""
        while name not in self._ready:
            found = next(self._walk, None)
            if found is None:
                raise KeyError(name)
            self._ready[found[0]] = found[1]
        return self._ready.pop(name)


class _LayerWalk:
    """One decoder layer: what its matrices are given, their packed forms, and what it gives with these."""

    def __init__(self, layer: DecoderLayer, prefix: str, format_of: Formats) -> None:
        """prefix: what precedes the names of the layer's weights in the model's."""
        self._layer, self._prefix = layer, prefix
        formats = {name: format_of(prefix + name) for name in matrices(layer)}
        self._formats = {name: packed for name, packed in formats.items() if packed is not None}
        self._statistics = {_source(name): Statistics() for name in self._formats if not _is_expert(name)}
        self._routed: list[Tensor] = []  # [B, T, D] each
        self._rounded: dict[str, Tensor] = {}  # what the packed weights stand for

    def observe(self, hidden: Sequence[Tensor], contexts: Sequence[ForwardContext]) -> None:
        """Compute hidden states [B, T, D], and take down what the matrices are given."""
        takers: dict[str, Callable[[Tensor], None]]
        takers = {name.removesuffix(".weight"): statistics.add for name, statistics in self._statistics.items()}
        if isinstance(self._layer.mlp, SparseMoe):
            takers["mlp"] = self._routed.append
        hooks = [
            self._layer.get_submodule(name).register_forward_pre_hook(_hook(take)) for name, take in takers.items()
        ]
        try:
            for x, context in zip(hidden, contexts, strict=True):
                self._layer(x, context, None)
        finally:
            for hook in hooks:
                hook.remove()

    def quantize(self) -> Iterator[NamedMatrix]:
        for name, packed in self._formats.items():
            full_name, weight = self._prefix + name, self._layer.get_parameter(name)
            if _is_expert(name):
                matrix = self._quantize_experts(full_name, weight, packed)
            else:
                matrix = _quantize(full_name, weight, packed, self._statistics[_source(name)])
            self._rounded[name] = matrix.dequantize(weight.dtype)
            yield full_name, matrix

    def advance(self, hidden: Sequence[Tensor], contexts: Sequence[ForwardContext]) -> list[Tensor]:
        """What the quantised layer gives for hidden states [B, T, D]."""
        return [
            functional_call(self._layer, self._rounded, (x, context, None))
            for x, context in zip(hidden, contexts, strict=True)
        ]

    def _quantize_experts(self, name: str, weight: Tensor, packed: PackedFormat) -> PackedMatrix:
        """A stack of experts, each by the tokens that the router gives it."""
        moe = self._layer.mlp
        assert isinstance(moe, SparseMoe)
        x = torch.cat([x.flatten(0, 1) for x in self._routed])
        _, chosen = route(moe.gate(x), moe.moe.num_experts_per_tok, moe.moe.norm_topk_prob)  # [T, top-k]
        matrix = _empty(weight, packed)
        for index in range(weight.shape[0]):
            statistics = Statistics()
            tokens = x[(chosen == index).any(dim=1)]
            statistics.add(tokens if name.endswith("gate_up_proj") else _inner(moe, index, tokens))
            _fill(name, matrix[index], weight[index], statistics)
        return matrix


def _inner(moe: SparseMoe, index: int, x: Tensor) -> Tensor:
    """What the down projection of an expert is given for x [T, D]."""
    gate, up = linear(x, moe.experts.gate_up_proj[index]).chunk(2, dim=-1)
    return F.silu(gate) * up


def _quantize(name: str, weight: Tensor, packed: PackedFormat, statistics: Statistics) -> PackedMatrix:
    matrix = _empty(weight, packed)
    _fill(name, matrix, weight, statistics)
    return matrix


def _empty(weight: Tensor, packed: PackedFormat) -> PackedMatrix:
    return PackedMatrix.empty(tuple(weight.shape), packed.bits, packed.group_size, packed.symmetric, weight.device)


def _fill(name: str, matrix: PackedMatrix, weight: Tensor, statistics: Statistics) -> None:
    try:
        fill_calibrated(matrix, weight, statistics)
    except CodemillError as error:
        raise CodemillError(f"tensor {name}: {error}") from None


def _is_expert(name: str) -> bool:
    return ".experts." in name


def _source(name: str) -> str:
    """The first of the projections that are given the same as this one."""
    *parents, module, leaf = name.split(".")
    return ".".join([*parents, _SHARED_INPUT.get(module, module), leaf])


def _hook(take: Callable[[Tensor], None]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _, inputs: take(inputs[0])
