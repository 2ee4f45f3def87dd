"""Hugging Face transformers, eager: the forward pass and its KV cache, without what `generate` adds to a step."""

import time
from collections.abc import Sequence
from typing import Any

from codemill.bench.engines import EngineOptions, Timing


class TransformersEngine:
    """Random weights of the shape; transformers has no fast quantised path for CPUs, so they are of the plain dtype."""

    def __init__(self, model: Any, dtype: str) -> None:
        self.model, self.settings = model, (f"{dtype}, eager",)
        self.weights: dict[str, Any] = {}

    def run(self, prompts: Sequence[Sequence[int]], num_new: int, setting: str) -> Timing:
        import torch

        with torch.inference_mode():
            start = time.perf_counter()
            out = self.model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
            first = time.perf_counter()
            for _ in range(num_new - 1):
                out = self.model(ids, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
                ids = out.logits[:, -1].argmax(-1, keepdim=True)
            return Timing(first - start, time.perf_counter() - first)


def create(options: EngineOptions) -> TransformersEngine:
    import torch
    import transformers

    torch.set_num_threads(options.num_threads)
    config = transformers.AutoConfig.for_model(**options.config)
    dtype = options.dtype if options.dtype != "auto" else "bfloat16"
    torch.set_default_dtype(getattr(torch, dtype))  # the weights are made in it, not converted to it
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    return TransformersEngine(model, dtype)
