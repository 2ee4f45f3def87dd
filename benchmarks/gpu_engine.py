"""Speed of the engine on a GPU, and whether it says there what it says on the CPU.

    python benchmarks/gpu_engine.py [--output benchmarks/results/gpu_engine.json]

Random weights in bf16; prompts of 512 distinct tokens. Prefill is the time of the first two
tokens, decode that of 64 more.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from codemill import LLM, SamplingParams

PROMPTS = ["def fibonacci(n):\n", "class Stack:\n    def __init__(self):\n", "import os\n\ndef read(path):\n"]
SPECS = ("random:qwen3-0.6b", "random:qwen3-coder-30b-a3b")
BATCHES = (1, 8, 32)
PROMPT_TOKENS, DECODED = 512, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu_engine.json")
    output = parser.parse_args().output
    if not torch.cuda.is_available():
        print("no GPU: nothing measured")
        return
    machine = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__}
    result: dict[str, Any] = {"machine": machine, "greedy_equals_cpu": greedy_equals_cpu(), "figures": []}
    for spec in SPECS:
        llm = LLM(spec, device="cuda", dtype="bf16", max_model_len=4096)
        result["figures"] += [measure(llm, spec, batch) for batch in BATCHES]
        del llm
        torch.cuda.empty_cache()
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def greedy_equals_cpu() -> list[bool]:
    """For each prompt, whether the embedded model continues it in fp32 on the GPU as on the CPU."""
    params = SamplingParams(temperature=0, max_tokens=64)
    on_cpu, on_gpu = (
        [each.outputs[0].token_ids for each in LLM(None, device=device, dtype="fp32").generate(PROMPTS, params)]
        for device in ("cpu", "cuda")
    )
    return [ours == theirs for ours, theirs in zip(on_gpu, on_cpu, strict=True)]


def measure(llm: LLM, spec: str, batch: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(batch)

    def prompts() -> list[list[int]]:
        return torch.randint(0, 150_000, (batch, PROMPT_TOKENS), generator=generator).tolist()

    short, long = (SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in (2, 2 + DECODED))
    llm.generate(prompts(), short)  # warm-up
    prefill = seconds(lambda: llm.generate(prompts(), short))
    decode = seconds(lambda: llm.generate(prompts(), long)) - prefill
    return {
        "model": spec,
        "batch": batch,
        "prefill_tokens_per_s": batch * PROMPT_TOKENS / prefill,
        "decode_tokens_per_s": batch * DECODED / decode,
    }


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
