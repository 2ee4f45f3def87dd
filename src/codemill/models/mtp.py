"""The multi-token prediction head of Qwen3-Next: a small network that drafts the token after the next one.

Shapes: B batch, T tokens, D model.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from codemill.config import ModelConfig
from codemill.kernels.linear import Linear
from codemill.models.cache import KVCache
from codemill.models.context import ForwardContext
from codemill.models.decoder import CausalLM, DecoderLayer
from codemill.models.layers import RMSNorm


class MtpHead(nn.Module):
    """One decoder layer of full attention and experts, over a target's hidden states and the tokens that came next.

    Embedding and output head are the target's. `config` is the target's with this one layer, so that
    `Cache.allocate_blocks(head.config, ...)` gives the head its KV cache.

    Source: vLLM's `qwen3_next_mtp.py`; transformers has no such module. vLLM hands over the hidden states after the
    target's final norm, and for drafts of drafts those after the head's own. The model's publisher does not say which;
    on the related Qwen3.6, llama.cpp measured more accepted drafts than with the states before the norm (its pull
    request 24025). Our arithmetic is tested against transformers' layers, not yet on published weights.
    """

    def __init__(self, config: ModelConfig) -> None:
        """config: the target's. Checkpoints with several such layers are not supported; none is published."""
        super().__init__()
        self.config = _one_layer(config)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.pre_fc_norm_embedding = RMSNorm(size, eps, config.is_hybrid)
        self.pre_fc_norm_hidden = RMSNorm(size, eps, config.is_hybrid)
        self.fc = Linear(2 * size, size, bias=False)
        self.layers = nn.ModuleList([DecoderLayer(self.config, 0)])
        self.norm = RMSNorm(size, eps, config.is_hybrid)

    def forward(
        self, next_ids: Tensor, hidden: Tensor, model: CausalLM, context: ForwardContext, state: KVCache | None = None
    ) -> Tensor:
        """next_ids [B, T] and hidden [B, T, D] -> hidden states [B, T, D]; `model.logits` of them predict what follows.

        hidden: what `model.compute` or `model.hidden_states` returned at positions p; next_ids: the tokens at p + 1.
        To draft further, feed a draft as next id and, as hidden, the state returned here that it was drawn from.

        A pair has the position p, and with a `state` the cache slot, of its hidden state. The cache of the head thus
        has the target's blocks, and holds one token less of a sequence until the next token is known.
        """
        embedding = self.pre_fc_norm_embedding(model.model.embed_tokens(next_ids))
        x = self.fc(torch.cat((embedding, self.pre_fc_norm_hidden(hidden)), dim=-1))  # [B, T, 2D] -> [B, T, D]
        for layer in self.layers:
            x = layer(x, context, state)
        return self.norm(x)


def _one_layer(config: ModelConfig) -> ModelConfig:
    """A single layer of full attention; with experts whatever layers of the target go without."""
    moe = None if config.moe is None else replace(config.moe, decoder_sparse_step=1, mlp_only_layers=())
    return replace(config, num_hidden_layers=1, layer_types=("full_attention",), moe=moe)
