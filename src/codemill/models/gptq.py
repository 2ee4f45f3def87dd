"""GPTQ (Frantar et al. 2022): weights quantised so that the outputs of each layer change little, not the weights.

Columns are rounded one after another, and what each loses is made up for by those that are still to come, as far as the
inputs of a calibration text are correlated: with H the sum of x x^T over its tokens, the squared error of an output is
e H e^T for a row's error e. The model is walked layer by layer, each seeing what the quantised ones before it give, so
only the statistics of one layer are in memory. See docs/quantization_quality.md for what it gains.

Shapes: N outputs, K inputs padded to whole groups, G groups, g group size, D model, T tokens, E experts.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codemill.errors import UsageError
from codemill.kernels.experts import route
from codemill.kernels.group_scales import choose_scales, quantize_groups
from codemill.kernels.linear import Linear, linear
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.models.context import ForwardContext
from codemill.models.decoder import CausalLM, DecoderLayer
from codemill.models.moe import SparseMoe

DAMPING = 0.01  # of the mean square of the inputs, added to each, as in the paper
MIN_TOKENS_PER_INPUT = 0.25  # with fewer tokens the statistics of an expert say more about chance than about its inputs
_KEPT = ("mlp.gate", "mlp.shared_expert_gate", "linear_attn.in_proj_ba")  # small, and sensitive
_SHARED_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


@torch.no_grad()
def quantize_layerwise(
    model: CausalLM, batches: Sequence[Tensor], bits: int, group_size: int = 32, symmetric: bool = True
) -> Iterator[tuple[str, PackedMatrix]]:
    """Each projection's name and quantised weight, a decoder layer at a time; an untied head comes last.

    batches: token ids [B, T] of a text like those that the model is meant for, at least 20,000 tokens. Embeddings are
    not among the results, nor a head that is tied to them. The weights of `model` are replaced by the quantised values
    as the walk goes on. Raises UsageError if there are no batches.
    """
    if not batches:
        raise UsageError("there is no text to calibrate with: give some")
    hidden = [model.model.embed_tokens(ids) for ids in batches]
    contexts = [ForwardContext.build(model.config, model.dtype, ids, None, None, None, ()) for ids in batches]
    form = _Form(bits, group_size, symmetric)
    for index, layer in enumerate(model.model.layers):
        assert isinstance(layer, DecoderLayer)
        for name, matrix in _quantize_layer(layer, hidden, contexts, form):
            yield f"model.layers.{index}.{name}", matrix
        hidden = [layer(x, context, None) for x, context in zip(hidden, contexts, strict=True)]
    if not model.config.tie_word_embeddings:
        statistics = Statistics()
        for x in hidden:
            statistics.add(model.model.norm(x))
        yield "lm_head.weight", form.replace(model.lm_head.weight, statistics)


class Statistics:
    """What is known of the inputs of a matrix: the sum of x x^T, and the number of tokens."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.squares: Tensor | None = None  # fp32 [K, K]

    def add(self, x: Tensor) -> None:
        """x [..., K]."""
        rows = x.flatten(0, -2).float()
        if self.squares is None:
            self.squares = rows.new_zeros(rows.shape[1], rows.shape[1])
        self.squares.addmm_(rows.T, rows)
        self.num_tokens += rows.shape[0]

    @property
    def is_enough(self) -> bool:
        return self.squares is not None and self.num_tokens >= MIN_TOKENS_PER_INPUT * self.squares.shape[0]


class _Form:
    """The form that weights are brought to."""

    def __init__(self, bits: int, group_size: int, symmetric: bool) -> None:
        self.bits, self.group_size, self.symmetric = bits, group_size, symmetric

    def replace(self, weight: Tensor, statistics: Statistics) -> PackedMatrix:
        """The quantised form of weight [N, K], whose values become what that form says."""
        matrix = PackedMatrix.empty(tuple(weight.shape), self.bits, self.group_size, self.symmetric, weight.device)
        self.fill(matrix, weight, statistics)
        return matrix

    def fill(self, matrix: PackedMatrix, weight: Tensor, statistics: Statistics) -> None:
        if statistics.squares is not None and statistics.is_enough:
            fill_by_statistics(matrix, weight, statistics.squares)
        else:
            matrix.fill(weight)
        weight.copy_(matrix.dequantize(weight.dtype))


def fill_by_statistics(matrix: PackedMatrix, weight: Tensor, squares: Tensor) -> None:
    """Quantise weight [N, K] into `matrix` with little error for inputs of which squares [K, K] is the sum of x x^T."""
    padding = -weight.shape[1] % matrix.group_size
    left = F.pad(weight.float(), (0, padding)).T.contiguous()  # [K, N]: what is still to be said by later columns
    inverse = inverse_factor(F.pad(squares, (0, padding, 0, padding)))
    quantised = torch.empty_like(left, dtype=torch.uint8)
    scales, minima = [], []
    for start in range(0, left.shape[0], matrix.group_size):
        group = slice(start, start + matrix.group_size)
        scale, minimum = choose_scales(left[group], matrix.bits, matrix.symmetric)  # [N]
        errors = _round_group(left[group], inverse[group, group], quantised[group], scale, minimum, matrix.bits)
        left[group.stop :] -= inverse[group, group.stop :].T @ errors
        scales.append(scale)
        minima.append(minimum)
    minimum_rows = None if matrix.symmetric else torch.stack([each for each in minima if each is not None], dim=1)
    matrix.fill_quantised(quantised.T, torch.stack(scales, dim=1), minimum_rows)


def _round_group(
    left: Tensor, inverse: Tensor, quantised: Tensor, scale: Tensor, minimum: Tensor | None, bits: int
) -> Tensor:
    """Round left [g, N] into `quantised`, a column after the other; returns the scaled errors [g, N]."""
    errors = torch.empty_like(left)
    offset = 2 ** (bits - 1) if minimum is None else 0
    for column in range(left.shape[0]):
        quantised[column] = quantize_groups(left[column : column + 1], scale, minimum, bits)[0]
        value = (quantised[column].float() - offset) * scale.float() + (0 if minimum is None else minimum.float())
        errors[column] = (left[column] - value) / inverse[column, column]
        left[column + 1 :] -= inverse[column, column + 1 :, None] * errors[column]
    return errors


def inverse_factor(squares: Tensor) -> Tensor:
    """The upper triangular R [K, K] with R^T R = H^-1, where H is `squares` with some damping.

    With H = U U^T for an upper triangular U (Cholesky from the last row upwards), R is the inverse of U.
    """
    diagonal = squares.diagonal()
    damping = max(DAMPING * diagonal.mean().item(), torch.finfo(squares.dtype).tiny)
    while True:
        damped = squares + damping * torch.eye(squares.shape[0], device=squares.device)
        factor, failure = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failure.item():
            break
        damping *= 10
    identity = torch.eye(squares.shape[0], device=squares.device)
    return torch.linalg.solve_triangular(factor.flip(0, 1), identity, upper=True)


def _quantize_layer(
    layer: DecoderLayer, hidden: Sequence[Tensor], contexts: Sequence[ForwardContext], form: _Form
) -> Iterator[tuple[str, PackedMatrix]]:
    """Names within the layer, and matrices."""
    linears = {name: module for name, module in layer.named_modules() if _is_quantised(name, module)}
    statistics: dict[str, Statistics] = {_source(name): Statistics() for name in linears}
    routed: list[Tensor] = []
    hooks = [linears[name].register_forward_pre_hook(_adder(statistics[name])) for name in statistics]
    if isinstance(layer.mlp, SparseMoe):
        hooks.append(layer.mlp.register_forward_pre_hook(lambda _, args: routed.append(args[0].flatten(0, 1))))
    for x, context in zip(hidden, contexts, strict=True):
        layer(x, context, None)
    for hook in hooks:
        hook.remove()
    if isinstance(layer.mlp, SparseMoe):
        yield from _quantize_experts(layer.mlp, torch.cat(routed), form)
    for name, module in linears.items():
        yield f"{name}.weight", form.replace(module.weight, statistics[_source(name)])


def _is_quantised(name: str, module: nn.Module) -> bool:
    return isinstance(module, Linear) and name not in _KEPT


def _source(name: str) -> str:
    """The first of the projections that have the same inputs."""
    parent, _, last = name.rpartition(".")
    return f"{parent}.{_SHARED_INPUT.get(last, last)}"


def _adder(statistics: Statistics):  # type: ignore[no-untyped-def]
    return lambda _, args: statistics.add(args[0])


def _quantize_experts(moe: SparseMoe, x: Tensor, form: _Form) -> Iterator[tuple[str, PackedMatrix]]:
    """The stacked experts, one at a time, each by the tokens of x [T, D] that the router gives it."""
    gate_up, down = moe.experts.gate_up_proj, moe.experts.down_proj
    _, chosen = route(moe.gate(x), moe.moe.num_experts_per_tok, moe.moe.norm_topk_prob)  # [T, k]
    matrices = [
        PackedMatrix.empty(tuple(weight.shape), form.bits, form.group_size, form.symmetric, x.device)
        for weight in (gate_up, down)
    ]
    for expert in range(moe.moe.num_experts):
        inputs, inner = Statistics(), Statistics()
        tokens = x[(chosen == expert).any(dim=1)]
        if tokens.shape[0]:
            gate, up = linear(tokens, gate_up[expert]).chunk(2, dim=-1)
            inputs.add(tokens)
            inner.add(F.silu(gate) * up)
        form.fill(matrices[0][expert], gate_up[expert], inputs)
        form.fill(matrices[1][expert], down[expert], inner)
    yield "mlp.experts.gate_up_proj", matrices[0]
    yield "mlp.experts.down_proj", matrices[1]
