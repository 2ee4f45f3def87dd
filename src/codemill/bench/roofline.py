"""What a step must read and compute, counted from the model's configuration, and how fast the machine could do it.

A decode step reads every weight that it touches once, the KV cache of each sequence up to where it is, and reads and
writes each recurrent state. Of experts it touches those that its tokens are routed to. Shapes: N rows, K columns of a
weight; a multiplication and an addition are two operations.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from codemill.config import LinearAttentionConfig, ModelConfig, MoeConfig

_SCALE_BYTES = 2
_STATE_BYTES = 4  # recurrent states are fp32
_ROW_BLOCK = 16  # quantised rows are padded to a multiple of it
_KINDS = {16: "bfloat16", 32: "float32"}


@dataclass(frozen=True)
class WeightFormat:
    """How weights lie in memory. group_size 0: plain numbers of `bits` bits; else quantised in groups of columns.

    kept_bits: of the parameters that are never quantised, and of the KV cache.
    """

    bits: int = 16
    group_size: int = 0
    symmetric: bool = True
    kept_bits: int = 16

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a matrix [N, K], its scales and padding included."""
        if not self.group_size:
            return rows * columns * self.bits // 8
        rows, groups = -(-rows // _ROW_BLOCK) * _ROW_BLOCK, -(-columns // self.group_size)
        per_group = self.group_size * self.bits // 8 + _SCALE_BYTES * (1 if self.symmetric else 2)
        return rows * groups * per_group

    @property
    def instruction(self) -> str:
        """The kind of product that such weights are made for."""
        return "int8" if self.group_size else _KINDS[self.bits]


@dataclass(frozen=True)
class Part:
    """Some parameters of the model: matrices [N, K], which a quantised model packs, and others, which it keeps."""

    matrices: tuple[tuple[int, int], ...] = ()
    num_kept: int = 0

    @property
    def num_parameters(self) -> int:
        return sum(rows * columns for rows, columns in self.matrices) + self.num_kept

    def num_bytes(self, weights: WeightFormat) -> int:
        packed = sum(weights.matrix_bytes(rows, columns) for rows, columns in self.matrices)
        return packed + self.num_kept * weights.kept_bits // 8


@dataclass(frozen=True)
class HeldWeights:
    """Bytes of a model in memory: all of it, and of that its routed experts and its embedding table."""

    total: int
    experts: int
    embedding: int


@dataclass(frozen=True)
class Roofline:
    """Counts for one model. held: what a loaded model takes; None to count it from the format."""

    config: ModelConfig
    weights: WeightFormat = WeightFormat()
    held: HeldWeights | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the whole model."""
        return self._held.total

    @property
    def _held(self) -> HeldWeights:
        if self.held is not None:
            return self.held
        experts = sum(moe.num_experts * expert_part(self.config, moe).num_bytes(self.weights) for moe in self._moes())
        embedding = self._head().num_bytes(self.weights)
        tables = embedding * (1 if self.config.tie_word_embeddings else 2)
        always = sum(part.num_bytes(self.weights) for part in self._always())
        return HeldWeights(experts + tables + always, experts, embedding)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all full-attention layers."""
        config = self.config
        num_full = config.layer_types.count("full_attention")
        return 2 * num_full * config.num_key_value_heads * config.head_dim * self.weights.kept_bits // 8

    @property
    def state_bytes(self) -> int:
        """Recurrent and conv state of one sequence, all Gated DeltaNet layers together."""
        linear = self.config.linear_attention
        if linear is None:
            return 0
        recurrent = linear.num_value_heads * linear.key_head_dim * linear.value_head_dim * _STATE_BYTES
        conv = (linear.conv_kernel_dim - 1) * linear.conv_channels * self.weights.kept_bits // 8
        return self.config.layer_types.count("linear_attention") * (recurrent + conv)

    def touched_weight_bytes(self, num_tokens: int) -> float:
        """Bytes of weights that a step over `num_tokens` tokens reads, with routers that choose evenly."""
        held, moe = self._held, self.config.moe
        total = float(held.total)
        if moe is not None:
            total -= held.experts * (1 - expected_experts(moe, num_tokens) / moe.num_experts)
        if not self.config.tie_word_embeddings:
            total -= held.embedding * (1 - min(1.0, num_tokens / self.config.vocab_size))
        return total

    def decode_bytes(self, batch: int, depth: float) -> float:
        """Bytes of one decode step of `batch` sequences that have `depth` tokens each."""
        return self.touched_weight_bytes(batch) + batch * (depth * self.kv_bytes_per_token + 2 * self.state_bytes)

    def decode_operations(self, batch: int, depth: float) -> float:
        """Operations of the same step."""
        head = 2.0 * self._head().num_parameters
        return batch * (head + self._token_operations() + depth * self._attention_operations())

    def prefill_operations(self, num_tokens: int) -> float:
        """Operations of a prompt of `num_tokens`; the head sees its last token only, attention what came before."""
        pairs = num_tokens * (num_tokens + 1) / 2
        head = 2.0 * self._head().num_parameters
        return head + num_tokens * self._token_operations() + pairs * self._attention_operations()

    def prefill_bytes(self, num_tokens: int) -> float:
        """Bytes that a prompt must read at least: each weight once, and the state it leaves is written."""
        left = num_tokens * self.kv_bytes_per_token + self.state_bytes
        return self.touched_weight_bytes(num_tokens) + left

    def _head(self) -> Part:
        return Part(((self.config.vocab_size, self.config.hidden_size),))

    def _always(self) -> Iterator[Part]:
        """What every token meets, besides embedding and head."""
        yield Part(num_kept=self.config.hidden_size)  # the final norm
        for layer in range(self.config.num_hidden_layers):
            yield mixer_part(self.config, layer)
            yield feed_forward_part(self.config, layer)

    def _moes(self) -> Iterator[MoeConfig]:
        for layer in range(self.config.num_hidden_layers):
            if self.config.moe is not None and self.config.is_moe_layer(layer):
                yield self.config.moe

    def _token_operations(self) -> float:
        """Operations of a token in all layers but for attention over what came before."""
        parameters = sum(part.num_parameters for part in self._always())
        for moe in self._moes():
            parameters += moe.num_experts_per_tok * expert_part(self.config, moe).num_parameters
        linear = self.config.linear_attention
        if linear is None:
            return 2.0 * parameters
        # The delta rule: what the state says of the key, the state's correction, and what it says of the query.
        state = linear.num_value_heads * linear.key_head_dim * linear.value_head_dim
        return 2.0 * parameters + 6.0 * state * self.config.layer_types.count("linear_attention")

    def _attention_operations(self) -> float:
        """Operations of a token for each token before it: a query times a key, a weight times a value."""
        config = self.config
        return 4.0 * config.layer_types.count("full_attention") * config.num_attention_heads * config.head_dim


def expected_experts(moe: MoeConfig, num_tokens: int) -> float:
    """How many different experts `num_tokens` tokens meet in one layer on average, if all are equally likely."""
    missed = (1 - moe.num_experts_per_tok / moe.num_experts) ** num_tokens
    return moe.num_experts * (1 - missed)


def mixer_part(config: ModelConfig, layer: int) -> Part:
    """A layer's token mixer, and the layer's two norms."""
    if config.layer_types[layer] != "full_attention":
        assert config.linear_attention is not None
        return _gated_deltanet_part(config, config.linear_attention)
    hidden, query = config.hidden_size, config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    gated = query * (2 if config.is_hybrid else 1)
    bias = gated + 2 * key + hidden if config.attention_bias else 0
    matrices = ((gated, hidden), (key, hidden), (key, hidden), (hidden, query))
    return Part(matrices, 2 * hidden + 2 * config.head_dim + bias)


def _gated_deltanet_part(config: ModelConfig, linear: LinearAttentionConfig) -> Part:
    hidden, heads = config.hidden_size, linear.num_value_heads
    matrices = ((2 * (linear.key_dim + linear.value_dim), hidden), (hidden, linear.value_dim))
    conv = linear.conv_channels * linear.conv_kernel_dim
    # Kept: norms, in_proj_ba, conv1d, A_log and dt_bias, the gated norm.
    return Part(matrices, 2 * hidden + 2 * heads * hidden + conv + 2 * heads + linear.value_head_dim)


def feed_forward_part(config: ModelConfig, layer: int) -> Part:
    """A layer's MLP, or of its experts what every token meets: the router and the shared expert."""
    moe = config.moe
    if moe is None or not config.is_moe_layer(layer):
        return Part(_mlp(config.hidden_size, config.intermediate_size))
    shared = moe.shared_expert_intermediate_size
    router = config.hidden_size * (moe.num_experts + (1 if shared else 0))
    return Part(_mlp(config.hidden_size, shared) if shared else (), router)


def expert_part(config: ModelConfig, moe: MoeConfig) -> Part:
    """One expert."""
    return Part(_mlp(config.hidden_size, moe.moe_intermediate_size))


def _mlp(hidden: int, size: int) -> tuple[tuple[int, int], ...]:
    return (size, hidden), (size, hidden), (hidden, size)
