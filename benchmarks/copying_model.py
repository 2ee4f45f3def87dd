"""A network that copies: it says what stood a fixed number of tokens earlier, at the cost of an ordinary one.

For measuring speculative decoding, which needs a model whose output resembles its prompt, as an edit does. Weights are
random but for the first layer, whose heads look back by `lag` tokens: keys and queries are constant vectors, so that a
score depends on the distance alone by way of the rotary embedding, and it peaks at the wanted one. The other layers
compute as always and add nothing.
"""

import torch

from codemill.models import CausalLM
from codemill.models.rope import inverse_frequencies

SHARPNESS = 40.0  # of the attention, as the weight of the query norm
COPY_STRENGTH = 30.0  # of what is copied over the token itself


@torch.no_grad()
def make_copying(model: CausalLM, lag: int) -> None:
    """Make a dense model say, after any token, the one that stood `lag` - 1 tokens before it."""
    config = model.config
    embedding = model.model.embed_tokens.weight
    embedding[:, 0] = 30 * embedding.std()  # a direction that all tokens share
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    attention = model.model.layers[0].self_attn
    key = torch.ones(config.head_dim)
    query = _rotated(key, inverse_frequencies(config.rope, config.head_dim)[0] * -(lag - 1))
    attention.k_proj.weight.zero_()[:, 0] = key.repeat(config.num_key_value_heads)
    attention.q_proj.weight.zero_()[:, 0] = query.repeat(config.num_attention_heads)
    attention.q_norm.weight.fill_(SHARPNESS)
    # Value heads carry all dims but the shared one; the first query head of each group gives them back.
    groups = config.num_attention_heads // config.num_key_value_heads
    size = min(config.hidden_size, config.num_key_value_heads * config.head_dim)
    value, output = attention.v_proj.weight.zero_(), attention.o_proj.weight
    for dim in range(1, size):
        head, offset = divmod(dim, config.head_dim)
        value[dim, dim] = 1.0
        output[dim, head * groups * config.head_dim + offset] = COPY_STRENGTH


def _rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """A vector [K] turned as the rotary embedding turns it, each pair of dims by its angle [K / 2]."""
    first, second = x.chunk(2)
    return torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()))
