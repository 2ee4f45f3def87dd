"""One decoder for every family: each layer is a token mixer (attention or Gated DeltaNet) and a feed-forward (MLP or
experts). Submodules carry the names of the Hugging Face checkpoints. Shapes: B batch, T tokens, D model.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from codemill.config import ModelConfig
from codemill.kernels.experts import RoutingLog
from codemill.kernels.linear import Linear
from codemill.kernels.low_rank import AdaptedRows
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.kernels.quantized_linear import QuantizedEmbedding, QuantizedLinear, product
from codemill.models.attention import Attention
from codemill.models.cache import Cache, LayerState
from codemill.models.context import ForwardContext
from codemill.models.fused import FusedDecoder
from codemill.models.gated_deltanet import GatedDeltaNet
from codemill.models.layers import Mlp, RMSNorm
from codemill.models.lora import LoraAdapter, adapted_rows
from codemill.models.moe import Experts, SparseMoe

ROW_BLOCK = 16  # rows of every matrix product of a batch-invariant model


class DecoderLayer(nn.Module):
    """x + mixer(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.layer_type = config.layer_types[index]
        if self.layer_type == "full_attention":
            self.self_attn = Attention(config)
        else:
            self.linear_attn = GatedDeltaNet(config)
        self.mlp: SparseMoe | Mlp
        if config.moe is not None and config.is_moe_layer(index):
            self.mlp = SparseMoe(config.hidden_size, config.moe)
        else:
            self.mlp = Mlp(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.is_hybrid)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.is_hybrid)

    def forward(self, x: Tensor, context: ForwardContext, state: LayerState | None) -> Tensor:
        mixer = self.self_attn if self.layer_type == "full_attention" else self.linear_attn
        x, normed = self.input_layernorm.after_adding(x)
        x, normed = self.post_attention_layernorm.after_adding(x, mixer(normed, context, state))
        if isinstance(self.mlp, SparseMoe):
            return x + self.mlp(normed, context.adapters, context.documents, context.routing)
        return x + self.mlp(normed, context.adapters)


class Decoder(nn.Module):
    """Embedding, decoder layers and the final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.is_hybrid)


class CausalLM(nn.Module):
    """A causal language model: the decoder and its head (the embedding itself where the weights are tied)."""

    row_block = 0
    fuses = True  # whether passes go through the C++ library where it can compute them
    experts_on_disk = False  # whether they are mapped and may not all fit in memory
    recompute = False  # whether training keeps only the inputs of each layer, and computes the rest once more
    _fused_decoder: FusedDecoder | None = None
    _has_no_kernel = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        for name, module in self.named_modules():
            if isinstance(module, Linear | Experts):
                module.name = name

    def __getstate__(self) -> dict[str, Any]:
        """A copy has weights of its own, and so a fused decoder of its own."""
        return {**super().__getstate__(), "_fused_decoder": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CausalLM":
        """What moves or converts the weights comes through here."""
        self._fused_decoder, self._has_no_kernel = None, False
        super()._apply(fn, recurse)
        return self

    def set_batch_invariant(self, on: bool = True) -> None:
        """Compute each token in the same way in any company, to the last bit; see docs/engine.md for the cost."""
        self.row_block = ROW_BLOCK if on else 0
        for module in self.modules():
            if isinstance(module, Linear | QuantizedLinear):
                module.row_block = self.row_block

    @property
    def is_batch_invariant(self) -> bool:
        return self.row_block > 0

    @property
    def dtype(self) -> torch.dtype:
        return self.model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def output_embedding(self) -> Tensor | PackedMatrix:
        """The head's weight [vocab, D]."""
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return head.matrix if isinstance(head, QuantizedLinear | QuantizedEmbedding) else head.weight

    def forward(
        self,
        input_ids: Tensor,
        cache: Cache | None = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        adapters: Sequence[LoraAdapter | None] = (),
    ) -> Tensor:
        """Token ids [B, T] -> logits [B, T, vocab]; see `hidden_states` for the arguments."""
        hidden = self.hidden_states(input_ids, cache, position_ids, document_ids, adapters)
        return self.logits(hidden, adapted_rows(adapters, [input_ids.shape[1]] * len(adapters), input_ids.device))

    def hidden_states(
        self,
        input_ids: Tensor,
        cache: Cache | None = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        adapters: Sequence[LoraAdapter | None] = (),
        routing: RoutingLog | None = None,
    ) -> Tensor:
        """Token ids [B, T] -> final hidden states [B, T, D].

        With a `cache` from `Cache.allocate` the tokens continue its rows, and are added to it. `position_ids` and
        `document_ids` [B, T] describe packed rows, in which documents do not see each other. `adapters`, if there are
        any, has one or None for each row. What routers say is noted in `routing`, if it is given.
        """
        if cache is not None and document_ids is not None:
            raise ValueError("packed documents have no cache: it holds one sequence a row")
        segments = None if cache is None else cache.next_rows(input_ids.shape[1])
        context = ForwardContext.build(
            *(self.config, self.dtype, input_ids, position_ids, document_ids, segments, adapters),
            batch_invariant=self.is_batch_invariant,
            routing=routing,
        )
        hidden = self.compute(input_ids, context, cache)
        if cache is not None:
            cache.lengths = [length + input_ids.shape[1] for length in cache.lengths]
        return hidden

    def compute(self, input_ids: Tensor, context: ForwardContext, cache: Cache | None = None) -> Tensor:
        """One pass over input_ids [B, T] as `context` describes it -> final hidden states [B, T, D].

        They are in the model's dtype, or in fp32 where the C++ library computed them.
        """
        fused = self._fused(input_ids, context, cache)
        if fused is not None and cache is not None:
            return fused.compute(input_ids, context, cache)
        x = self.model.embed_tokens(input_ids)
        for adapter in context.adapters:
            adapter.add_embedding("model.embed_tokens", input_ids, x)
        for index, layer in enumerate(self.model.layers):
            state = None if cache is None else cache.layers[index]
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, context, state, use_reentrant=False)
            else:
                x = layer(x, context, state)
        return self.model.norm(x)

    def _fused(self, input_ids: Tensor, context: ForwardContext, cache: Cache | None) -> FusedDecoder | None:
        """The C++ form of the decoder, if there is one for this pass."""
        if cache is None or self.training or not self.fuses or self._has_no_kernel:
            return None
        fused = self._fused_decoder  # which another thread may replace
        if fused is None or not fused.is_current:
            fused = self._fused_decoder = FusedDecoder.build(self)
            self._has_no_kernel = fused is None
        if fused is None or not fused.takes(input_ids, context, cache, self.is_batch_invariant):
            return None
        return fused

    def logits(self, hidden: Tensor, adapters: Sequence[AdaptedRows] = ()) -> Tensor:
        """Hidden states [..., D] -> logits [..., vocab]; `adapters` are of these rows, see `adapted_rows`."""
        logits = product(hidden, self.output_embedding, self.row_block)
        for adapter in adapters:
            adapter.add_linear("lm_head", hidden, logits)
        return logits
