"""Forward and backward of packed rows, ours beside `transformers`, with the time that the products would take alone.

    python benchmarks/training_kernels.py [--threads 1] [--rounds 3] [--layers 2] [--output FILE.json]

Two models, each of some layers: `moe` (D 512, 64 experts of F 256, 8 of them a token) and `dense` (the layers of
Qwen3-0.6B); four rows of 1,024 tokens, packed with documents of 100 to 400; fp32, and fp32 weights under autocast to
bf16. The work is the body without the head: hidden states, the mean of their squares, and its gradients of all weights.
`transformers` has its fastest implementations for the CPU: grouped_mm for the experts, and SDPA, with position ids that
restart, from which it makes a mask of documents. The forms take turns, and the best round of each is reported. The
roofline is that of the matrix products of the body, without attention's, at the speed of PyTorch's product of large
square matrices in that precision.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import torch
import transformers
from torch import Tensor, nn
from transformers_speed import processor

from codemill.config import ModelConfig
from codemill.kernels.heap import keep_all_freed_memory
from codemill.kernels.machine_speed import matrix_product_peak
from codemill.models import CausalLM
from codemill.models.initialize import initialize

ROWS, TOKENS, SHORTEST, LONGEST = 4, 1024, 100, 400
COMMON = {"vocab_size": 4096, "max_position_embeddings": 4096, "tie_word_embeddings": True}
MOE = {
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
}
DENSE = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM, MOE),
    "dense": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, DENSE),
}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """Both networks of one shape, and the packed rows [R, T]."""

    ours: CausalLM
    theirs: transformers.PreTrainedModel
    input_ids: Tensor
    position_ids: Tensor
    document_ids: Tensor

    def our_step(self) -> Tensor:
        return self.ours.hidden_states(self.input_ids, position_ids=self.position_ids, document_ids=self.document_ids)

    def their_step(self) -> Tensor:
        return self.theirs.model(self.input_ids, position_ids=self.position_ids, use_cache=False).last_hidden_state

    @property
    def operations(self) -> float:
        """Of the products of a step with each token's weights, forward and backward."""
        moe = self.ours.config.moe
        active = 0.0
        for name, parameter in self.ours.model.layers.named_parameters():
            share = 1.0 if moe is None or ".experts." not in name else moe.num_experts_per_tok / moe.num_experts
            active += parameter.numel() * share
        return 6 * active * self.input_ids.numel()


def draw(name: str, layers: int) -> Case:
    config_class, model_class, shape = MODELS[name]
    config = config_class(**COMMON, **shape, num_hidden_layers=layers)
    theirs = model_class._from_config(config, attn_implementation="sdpa").train()
    ours = CausalLM(replace(ModelConfig.from_dict(config.to_dict()), dtype="float32")).train()
    initialize(ours, 0)
    generator = torch.Generator().manual_seed(0)
    positions, documents = torch.zeros(ROWS, TOKENS, dtype=torch.long), torch.zeros(ROWS, TOKENS, dtype=torch.long)
    for row in range(ROWS):
        start = number = 0
        while start < TOKENS:
            length = int(torch.randint(SHORTEST, LONGEST + 1, (), generator=generator))
            stop = min(start + length, TOKENS)
            positions[row, start:stop] = torch.arange(stop - start)
            documents[row, start:stop] = number
            start, number = stop, number + 1
    ids = torch.randint(config.vocab_size, (ROWS, TOKENS), generator=generator)
    return Case(ours, theirs, ids, positions, documents)


def timed(model: nn.Module, forward: Callable[[], Tensor], dtype: torch.dtype) -> tuple[float, float]:
    """Seconds forward and backward."""
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = forward().float().square().mean()
    between = time.perf_counter()
    loss.backward()
    stop = time.perf_counter()
    model.zero_grad(set_to_none=True)
    return between - start, stop - between


def figure(name: str, precision: str, case: Case, rounds: int) -> dict[str, Any]:
    dtype = PRECISIONS[precision]
    forms = {"codemill": (case.ours, case.our_step), "transformers": (case.theirs, case.their_step)}
    best: dict[str, tuple[float, float]] = {}
    for number in range(rounds + 1):
        for form, (model, step) in forms.items():
            seconds = timed(model, step, dtype)
            if number > 0 and (form not in best or sum(seconds) < sum(best[form])):  # the first round warms up
                best[form] = seconds
    peak = matrix_product_peak(precision, size=2048)  # type: ignore[arg-type]
    assert peak is not None
    bound = case.operations / peak
    return {
        "model": name,
        "precision": precision,
        "unit": "s a step, forward and backward",
        **{form: list(seconds) for form, seconds in best.items()},
        "times_transformers": sum(best["transformers"]) / sum(best["codemill"]),
        "roofline": bound,
        "peak": peak,
        "fraction": bound / sum(best["codemill"]),
        "fraction_transformers": bound / sum(best["transformers"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_all_freed_memory()
    figures = []
    for name in MODELS:
        case = draw(name, options.layers)
        for precision in PRECISIONS:
            figures.append(figure(name, precision, case, options.rounds))
            print(json.dumps(figures[-1]), flush=True)
            save(options, figures)


def save(options: argparse.Namespace, figures: list[dict[str, Any]]) -> None:
    report = {
        "command": ["python", *sys.argv],
        "machine": {"processor": processor(), "threads": options.threads},
        "versions": {each: version(each) for each in ("torch", "transformers")},
        "figures": figures,
    }
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
