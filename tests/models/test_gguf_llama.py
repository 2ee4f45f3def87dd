"""llama.cpp opens what we export, and continues prompts with the same greedy tokens."""

from pathlib import Path

import pytest
import torch

from codemill.chat import Tokenizer
from codemill.config import ModelConfig
from codemill.models import CausalLM, load_model, save_pretrained
from codemill.models.convert import convert

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: no llama.cpp to compare with")

NUM_TOKENS = 64
SIZES = {
    "vocab_size": 211,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "rope_theta": 1e6,
}
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
HYBRID = {
    **MOE,
    "num_hidden_layers": 4,
    "shared_expert_intermediate_size": 64,
    "partial_rotary_factor": 0.25,
    "head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,  # llama.cpp has one size for keys and values
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
}
FAMILIES = {
    "qwen3": {**SIZES, "model_type": "qwen3"},
    "qwen3-tied": {**SIZES, "model_type": "qwen3", "tie_word_embeddings": True},
    "qwen3_moe": {**SIZES, **MOE, "model_type": "qwen3_moe"},
    "qwen3_next": {**SIZES, **HYBRID, "model_type": "qwen3_next"},
}
PROMPTS = ([1], [5, 6, 7, 8, 9], list(range(100, 160)), [3] * 20)
TEXTS = ("def fibonacci(n):\n", "import os\nimport sys\n\n\nclass Reader:\n", "# Sorts a list\n")


def random_model(family: str) -> CausalLM:
    """Weights large enough that the likeliest token is clear."""
    torch.manual_seed(1)
    model = CausalLM(ModelConfig.from_dict({**FAMILIES[family], "dtype": "float32"})).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "dt_bias")):
            parameter.add_(torch.randn_like(parameter) * 0.2)
        elif name.endswith("A_log"):
            parameter.uniform_(-3, 0)
        else:
            parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model


def assert_continues(model: CausalLM, llama: "llama_cpp.Llama", prompt: list[int], tie: float = 0.0) -> None:
    """llama.cpp's greedy tokens are the likeliest of ours at each place; up to a tie of logits nearer than `tie`."""
    theirs = their_tokens(llama, prompt)
    logits = model(torch.tensor([[*prompt, *theirs]]))[0, len(prompt) - 1 : -1]
    best, chosen = logits.max(dim=-1).values, logits.gather(1, torch.tensor(theirs)[:, None])[:, 0]
    assert ((best - chosen) <= tie).all()


def their_tokens(llama: "llama_cpp.Llama", prompt: list[int]) -> list[int]:
    llama.reset()
    tokens = llama.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True)
    return [int(next(tokens)) for _ in range(NUM_TOKENS)]


def open_llama(path: Path) -> "llama_cpp.Llama":
    # A cache of fp32, which is what ours is for these models.
    options = {"type_k": 0, "type_v": 0, "n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    return llama_cpp.Llama(str(path), **options)


@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_same_greedy_tokens(tmp_path: Path, family: str, kind: str) -> None:
    save_pretrained(random_model(family), tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "model.gguf", kind)
    model, llama = load_model(tmp_path / "model.gguf", dtype="float32"), open_llama(tmp_path / "model.gguf")
    for prompt in PROMPTS:
        # Weights in F16 let llama.cpp round activations to F16 too; logits here are about 1.
        assert_continues(model, llama, prompt, tie=0.0 if kind == "f32" else 0.02)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_the_embedded_model(tmp_path: Path, kind: str) -> None:
    convert(None, tmp_path / "model.gguf", kind)
    llama, tokenizer = open_llama(tmp_path / "model.gguf"), Tokenizer.load()
    model = load_model(tmp_path / "model.gguf", dtype="float32")
    for text in TEXTS:
        prompt = tokenizer.encode(text)
        assert llama.tokenize(text.encode(), add_bos=False, special=False) == prompt
        assert llama.detokenize(prompt).decode() == text
        if kind in ("f32", "f16"):  # llama.cpp rounds activations, too, for the others
            assert_continues(model, llama, prompt)
