"""Tiny random `transformers` models, and ours with the same weights."""

from typing import Any

import torch
import transformers

from codemill.config import ModelConfig
from codemill.models import CausalLM

COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
MOE = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
HYBRID = {
    **MOE,
    "num_hidden_layers": 4,
    "shared_expert_intermediate_size": 40,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_conv_kernel_dim": 4,
}
FAMILIES = {
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, COMMON),
    "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM, {**COMMON, **MOE}),
    "qwen3_next": (transformers.Qwen3NextConfig, transformers.Qwen3NextForCausalLM, {**COMMON, **HYBRID}),
}


def make_reference(family: str, seed: int = 0, **changes: Any) -> transformers.PreTrainedModel:
    """A `transformers` model with weights large enough that a mistake anywhere moves the logits."""
    config_class, model_class, defaults = FAMILIES[family]
    torch.manual_seed(seed)
    config = config_class(**{**defaults, **changes})
    model = model_class._from_config(config, attn_implementation="eager", experts_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "dt_bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif "A_log" in name:
                # Slow decay, as in trained models. States that forget at once yield outputs near zero, whose rounding
                # errors the gated norm magnifies, in the reference as in ours.
                parameter.sub_(3)
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model


def make_ours(reference: transformers.PreTrainedModel) -> CausalLM:
    """Our network with the reference's weights; in memory both stack the experts."""
    model = CausalLM(ModelConfig.from_dict(reference.config.to_dict())).eval()
    state = reference.state_dict()
    if reference.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    model.load_state_dict(state)
    return model.requires_grad_(False)
