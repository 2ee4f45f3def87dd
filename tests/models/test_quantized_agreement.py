"""The embedded model, quantised, mostly chooses the token that it chooses in bf16, along what it writes in bf16.

`benchmarks/quantization_quality.py` measures it over more text; here are the bounds.
"""

import pytest
import torch

from codemill import LLM, SamplingParams
from codemill.data.texts import cut_windows
from codemill.eval.held_out_text import held_out_modules, task_files
from codemill.models import load_model

PROMPT_TOKENS, NEW_TOKENS = 48, 64


@pytest.fixture(scope="module")
def written() -> list[list[int]]:
    """Prompts from text that the model has not seen, and what it writes in bf16, greedily."""
    llm = LLM()
    texts = [*held_out_modules()[:4], *task_files()[:40]]
    windows = cut_windows([llm.tokenizer.encode(text) for text in texts], 256)
    prompts = [window[:PROMPT_TOKENS] for window in windows if len(window) >= PROMPT_TOKENS][:: len(windows) // 24][:24]
    assert len(prompts) == 24
    outputs = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True))
    return [[*p, *output.outputs[0].token_ids] for p, output in zip(prompts, outputs, strict=True)]


@pytest.mark.parametrize(("quantization", "least"), [("int8", 0.95), ("int4", 0.85)])
def test_quantised_greedy_output_agrees_with_bf16(written: list[list[int]], quantization: str, least: float) -> None:
    model, ids = load_model(None, quantization=quantization), torch.tensor(written)
    with torch.inference_mode():
        hidden = model.hidden_states(ids[:, :-1])[:, PROMPT_TOKENS - 1 :]
        chosen = model.logits(hidden).argmax(dim=-1)
    agreement = (chosen == ids[:, PROMPT_TOKENS:]).double().mean().item()
    assert ids.shape == (24, PROMPT_TOKENS + NEW_TOKENS)
    assert agreement >= least
