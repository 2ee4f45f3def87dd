"""Gated DeltaNet, the linear-attention mixer of Qwen3-Next and Qwen3-Coder-Next.

Shapes: B batch, T tokens, N of all rows, D model, G key heads, H value heads (R = H / G per key head), K key dim,
V value dim, C conv channels, W conv width.
"""

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codemill.config import ModelConfig
from codemill.kernels.causal_conv import causal_conv, next_window
from codemill.kernels.elementwise import in_whole_vectors
from codemill.kernels.gated_delta import (
    DeltaSegments,
    DeltaWeights,
    gated_delta_chunked,
    gated_delta_recurrent,
    gated_delta_segments,
    has_delta_kernel,
)
from codemill.kernels.linear import Linear
from codemill.kernels.segments import Single
from codemill.models.cache import LinearState
from codemill.models.context import Deferred, ForwardContext
from codemill.models.layers import GatedRMSNorm


class DepthwiseConv(nn.Module):
    """Holds the convolution's weight under its name on disk, [C, 1, W]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))


class GatedDeltaNet(nn.Module):
    """Projections, causal conv, the gated delta rule, and a gated norm. The recurrence runs in fp32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        linear = config.linear_attention
        assert linear is not None
        self.linear = linear
        self.in_proj_qkvz = Linear(config.hidden_size, 2 * (linear.key_dim + linear.value_dim), bias=False)
        self.in_proj_ba = Linear(config.hidden_size, 2 * linear.num_value_heads, bias=False)
        self.conv1d = DepthwiseConv(linear.conv_channels, linear.conv_kernel_dim)
        self.A_log = nn.Parameter(torch.empty(linear.num_value_heads))
        self.dt_bias = nn.Parameter(torch.ones(linear.num_value_heads))
        self.norm = GatedRMSNorm(linear.value_head_dim, config.rms_norm_eps)
        self.out_proj = Linear(linear.value_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, context: ForwardContext, state: LinearState | None) -> Tensor:
        """x [B, T, D] -> [B, T, D]; advances the states in `state`, if there is one."""
        qkvz, ba = self.in_proj_qkvz(x, context.adapters), self.in_proj_ba(x, context.adapters)
        if state is not None and has_delta_kernel(qkvz, state.recurrent, state.conv):
            out = self._recur_in_kernel(qkvz.flatten(0, 1), ba.flatten(0, 1), context, state)  # [N, H * V]
            return self.out_proj(out.to(x.dtype).view(*x.shape[:2], -1), context.adapters)
        mixed, z = self._split_inputs(qkvz)  # [B, T, C], [B, T, H, V]
        g, beta = self._gates(ba)  # [B, T, H] each
        if state is None:
            out = context.for_each_document(self._recur_from_zero, mixed, g, beta)  # [B, T, H, V]
        else:
            flat = (mixed.flatten(0, 1), g.flatten(0, 1), beta.flatten(0, 1))
            out = self._recur_segments(*flat, context, state).view(z.shape)
        return self.out_proj(self.norm(out.to(x.dtype), z).flatten(2), context.adapters)

    def _recur_in_kernel(self, qkvz: Tensor, ba: Tensor, context: ForwardContext, state: LinearState) -> Tensor:
        """qkvz and ba [N, ...] -> normed outputs fp32 [N, H * V]; advances the segments' states."""
        assert context.segments is not None
        segments, states = context.segments, (state.recurrent, state.conv)
        out = gated_delta_segments(qkvz, ba, self._weights, *states, DeltaSegments.of(segments))
        assert out is not None
        self.defer_drafts(qkvz, ba, context, state)
        return out

    def defer_drafts(self, qkvz: Tensor, ba: Tensor, context: ForwardContext, state: LinearState) -> None:
        """Keep what the drafts of a pass [N, ...] need to advance the state, until it is known which are accepted."""
        assert context.segments is not None
        segments = context.segments
        for index, (start, segment) in enumerate(zip(segments.starts, segments.each, strict=True)):
            if segment.num_uncertain:
                stop = start + segment.num_new
                drafts = slice(stop - segment.num_uncertain, stop)
                inputs = qkvz[drafts].clone(), ba[drafts].clone()  # not views: they would keep the whole pass alive
                advance = partial(self._accept_in_kernel, inputs, state, segment.state_slot)
                context.deferred.append(Deferred(index, advance))

    def _accept_in_kernel(
        self, inputs: tuple[Tensor, Tensor], state: LinearState, slot: int, num_accepted: int
    ) -> None:
        """Move the state over the first `num_accepted` of the drafts in `inputs`."""
        alone = DeltaSegments.alone(num_accepted, slot)
        gated_delta_segments(*inputs, self._weights, state.recurrent, state.conv, alone, want_outputs=False)

    @property
    def _weights(self) -> DeltaWeights:
        return DeltaWeights(self.conv1d.weight.squeeze(1), self.A_log, self.dt_bias, self.norm.weight, self.norm.eps)

    def _recur_segments(
        self, mixed: Tensor, g: Tensor, beta: Tensor, context: ForwardContext, state: LinearState
    ) -> Tensor:
        """mixed [N, C], g and beta [N, H] -> outputs fp32 [N, H, V]; advances the segments' states."""
        assert context.segments is not None
        linear = self.linear
        out = g.new_empty(mixed.shape[0], linear.num_value_heads, linear.value_head_dim)
        together = context.segments.single
        if together is not None:
            self._recur_single(mixed, g, beta, together, state, out)
        for index, (start, segment) in enumerate(zip(context.segments.starts, context.segments.each, strict=True)):
            if together is not None and segment.is_single:
                continue
            for first, stop in pairwise(segment.cuts):
                piece = slice(start + first, start + stop)
                inputs = mixed[None, piece], g[None, piece], beta[None, piece]
                certain = stop <= segment.num_new - segment.num_uncertain
                out[piece] = self._advance(inputs, state, segment.state_slot, certain)
                if not certain:
                    context.deferred.append(Deferred(index, partial(self._accept, inputs, state, segment.state_slot)))
                for target in segment.checkpoints_after(stop):
                    state.copy_slot(segment.state_slot, target)
        return out

    def _recur_single(
        self, mixed: Tensor, g: Tensor, beta: Tensor, single: Single, state: LinearState, out: Tensor
    ) -> None:
        """One step for all sequences that have one new token; writes their rows of `out` [N, H, V]."""
        rows, slots = single.rows, single.state_slots
        mixed, window = mixed[rows, None], state.conv[slots]
        outputs, recurrent = self._recur(mixed, g[rows, None], beta[rows, None], window, state.recurrent[slots])
        out[rows] = outputs[:, 0]
        state.recurrent.index_copy_(0, slots, recurrent)
        state.conv.index_copy_(0, slots, next_window(mixed, window))

    def _advance(self, inputs: tuple[Tensor, Tensor, Tensor], state: LinearState, slot: int, write: bool) -> Tensor:
        """Outputs [n, H, V] of one sequence's tokens; its state moves on only if `write`."""
        window, recurrent = state.conv[slot : slot + 1], state.recurrent[slot : slot + 1]
        out, new_recurrent = self._recur(*inputs, window, recurrent)
        if write:
            recurrent.copy_(new_recurrent)
            window.copy_(next_window(inputs[0], window))
        return out[0]

    def _accept(self, inputs: tuple[Tensor, Tensor, Tensor], state: LinearState, slot: int, num_accepted: int) -> None:
        """Move the state over the first `num_accepted` of the drafts in `inputs`."""
        mixed, g, beta = (x[:, :num_accepted] for x in inputs)
        self._advance((mixed, g, beta), state, slot, write=True)

    def _recur(
        self, mixed: Tensor, g: Tensor, beta: Tensor, window: Tensor, recurrent: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Convolution and recurrence over mixed [B, T, C] -> outputs fp32 [B, T, H, V] and the new state."""
        conv = F.silu(causal_conv(mixed, self.conv1d.weight.squeeze(1), window))
        by_token = mixed.shape[1] == 1 or self.in_proj_ba.row_block  # chunks would round by where they begin
        rule = gated_delta_recurrent if by_token else gated_delta_chunked
        out, recurrent = rule(*self._split_heads(conv), g.transpose(1, 2), beta.transpose(1, 2), recurrent)
        return out.transpose(1, 2), recurrent

    def _recur_from_zero(self, mixed: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        linear, batch_size = self.linear, mixed.shape[0]
        window = mixed.new_zeros(batch_size, linear.conv_kernel_dim - 1, linear.conv_channels)
        shape = (batch_size, linear.num_value_heads, linear.key_head_dim, linear.value_head_dim)
        return self._recur(mixed, g, beta, window, mixed.new_zeros(shape, dtype=torch.float32))[0]

    def _split_inputs(self, qkvz: Tensor) -> tuple[Tensor, Tensor]:
        """The projection's rows are grouped by key head as [q | k | v of R heads | z of R heads]."""
        linear = self.linear
        value_size = linear.value_dim // linear.num_key_heads  # R * V
        grouped = qkvz.unflatten(-1, (linear.num_key_heads, -1))
        *qkv, z = grouped.split((linear.key_head_dim, linear.key_head_dim, value_size, value_size), dim=-1)
        mixed = torch.cat([part.flatten(2) for part in qkv], dim=-1)
        return mixed, z.reshape(*qkvz.shape[:2], linear.num_value_heads, linear.value_head_dim)

    def _gates(self, ba: Tensor) -> tuple[Tensor, Tensor]:
        """Log decay g = -exp(A_log) softplus(a + dt_bias) and write strength beta = sigmoid(b), fp32 [B, T, H]."""
        b, a = ba.unflatten(-1, (self.linear.num_key_heads, -1)).chunk(2, dim=-1)
        softplus = in_whole_vectors(F.softplus, a.flatten(2).float() + self.dt_bias)
        return -self.A_log.float().exp() * softplus, in_whole_vectors(torch.sigmoid, b.flatten(2)).float()

    def _split_heads(self, conv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """conv [B, T, C] -> query and key [B, H, T, K] (unit length, query scaled), value [B, H, T, V], all fp32."""
        linear = self.linear
        query, key, value = conv.float().split((linear.key_dim, linear.key_dim, linear.value_dim), dim=-1)
        repeats = linear.num_value_heads // linear.num_key_heads
        query, key = (self._unit(x.unflatten(-1, (-1, linear.key_head_dim)), repeats) for x in (query, key))
        value = value.unflatten(-1, (-1, linear.value_head_dim)).transpose(1, 2)
        return query * linear.key_head_dim**-0.5, key, value

    @staticmethod
    def _unit(x: Tensor, repeats: int) -> Tensor:
        """Unit-length vectors [B, T, G, K], repeated to the value heads -> [B, H, T, K]."""
        x = x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)
        return x.repeat_interleave(repeats, dim=2).transpose(1, 2)
