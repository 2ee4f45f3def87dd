"""Full attention with grouped queries, per-head q/k norms and rotary positions; gated in hybrid models.

Shapes: B batch, T new tokens, N of all rows, D model, H query heads, H_kv key/value heads, K head_dim.
"""

from torch import Tensor, nn

from codemill.config import ModelConfig
from codemill.kernels import training_rows
from codemill.kernels.attention import attend_document
from codemill.kernels.attention_training import attend_documents, has_attention_kernel
from codemill.kernels.kv_cache import KVCache
from codemill.kernels.linear import Linear
from codemill.models.context import ForwardContext
from codemill.models.layers import RMSNorm
from codemill.models.rope import apply_rotary


class Attention(nn.Module):
    """Qwen3 attention. In Qwen3-Next `q_proj` yields [q | gate] per head and sigmoid(gate) scales the output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.gated = config.is_hybrid
        query_dim = config.num_attention_heads * config.head_dim
        kv_dim = config.num_key_value_heads * config.head_dim
        bias = config.attention_bias
        self.q_proj = Linear(config.hidden_size, query_dim * (2 if self.gated else 1), bias=bias)
        self.k_proj = Linear(config.hidden_size, kv_dim, bias=bias)
        self.v_proj = Linear(config.hidden_size, kv_dim, bias=bias)
        self.o_proj = Linear(query_dim, config.hidden_size, bias=bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, zero_centered=config.is_hybrid)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, zero_centered=config.is_hybrid)

    def forward(self, x: Tensor, context: ForwardContext, state: KVCache | None) -> Tensor:
        """x [B, T, D] -> [B, T, D]; writes the new keys and values to `state`, if there is one."""
        shape = (*x.shape[:2], -1, self.head_dim)
        adapters = context.adapters
        query, gate = self.q_proj(x, adapters), None
        if self.gated:
            query, gate = query.view(*shape[:3], 2 * self.head_dim).chunk(2, dim=-1)
        cos, sin = context.rotary
        query = self._norm_and_rotate(self.q_norm, query.view(shape), cos, sin)  # [B, T, H, K]
        key = self._norm_and_rotate(self.k_norm, self.k_proj(x, adapters).view(shape), cos, sin)  # [B, T, H_kv, K]
        value = self.v_proj(x, adapters).view(shape)
        if state is None:
            out = self._attend(query, key, value, context)
        else:
            flat = (query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1))
            out = self._attend_cached(*flat, context, state).view(query.shape)
        if gate is not None:
            out = out * gate.sigmoid()
        return self.o_proj(out.reshape(*x.shape[:2], -1), adapters)

    @staticmethod
    def _norm_and_rotate(norm: RMSNorm, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if training_rows.fused(x, norm.weight):
            return training_rows.norm_and_rotate(x, norm.weight, cos, sin, norm.eps, float(norm.zero_centered))
        return apply_rotary(norm(x), cos, sin)

    @staticmethod
    def _attend(query: Tensor, key: Tensor, value: Tensor, context: ForwardContext) -> Tensor:
        if has_attention_kernel(query, key, value):
            documents = context.documents or (query.shape[1],) * query.shape[0]
            return attend_documents(query, key, value, documents)
        return context.for_each_document(attend_document, query, key, value)

    def _attend_cached(
        self, query: Tensor, key: Tensor, value: Tensor, context: ForwardContext, state: KVCache
    ) -> Tensor:
        """query [N, H, K], key and value [N, H_kv, K] -> [N, H, K], over what the cache holds of each segment."""
        assert context.segments is not None
        state.write(key, value, context.segments.slot_mapping)
        return context.attention.attend(query, key, value, state)
