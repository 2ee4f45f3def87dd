"""Decode on a quiet machine and beside programs that keep processors busy.

    python benchmarks/busy_machine.py MODEL [--threads 2] [--rounds 5] [--other LIBRARY]
        [--output benchmarks/results/NAME.json]

MODEL is a spec, such as a directory that `codemill quantize random:qwen3-0.6b` wrote. `--other` is another build of the
library of `kernels/cpu/`, measured in turns with the installed one. Medians of tokens a second.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers_speed import processor

from codemill import LLM, SamplingParams
from codemill.chat import Tokenizer
from codemill.kernels.cpu_library import CpuLibrary, load_cpu_library
from codemill.models import load_model

PROMPT, NEW, PREFILL = 16, 64, 512


def tokens_per_second(llm: LLM, library: CpuLibrary, prompt: int, new: int) -> float:
    """Of decode; of prefill where one token is asked for."""
    fused = llm.model._fused_decoder
    if fused is not None:
        fused._library = library
    ids = torch.randint(1000, (prompt,)).tolist()
    metrics = llm.generate([ids], SamplingParams(max_tokens=new, temperature=0, ignore_eos=True))[0].metrics
    assert metrics is not None
    return prompt / metrics.first_token_seconds if new == 1 else metrics.tokens_per_second


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    # Of a random model too, which has no tokenizer of its own.
    network, tokenizer = load_model(arguments.model), Tokenizer.load(None)
    llm = LLM.from_parts(network, tokenizer, max_model_len=1024, enable_prefix_cache=False)
    own = load_cpu_library()
    assert own is not None, "the library is not built"
    libraries = {"installed": own, **({"other": CpuLibrary(arguments.other)} if arguments.other else {})}
    tokens_per_second(llm, own, PROMPT, 8)
    figures = []
    for hogs in range(arguments.threads + 1):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(hogs)]
        time.sleep(0.5)
        try:
            for name, prompt, new in (("decode", PROMPT, NEW), ("prefill", PREFILL, 1)):
                speeds: dict[str, list[float]] = {each: [] for each in libraries}
                for turn in range(arguments.rounds):
                    for each in list(libraries)[:: 1 if turn % 2 else -1]:
                        speeds[each].append(tokens_per_second(llm, libraries[each], prompt, new))
                medians = {each: round(statistics.median(values), 1) for each, values in speeds.items()}
                figures.append({"name": name, "busy_programs": hogs, "tokens_per_second": medians})
                print(figures[-1], flush=True)
        finally:
            for each in busy:
                each.kill()
                each.wait()
    result = {"processor": processor(), "model": arguments.model, "threads": arguments.threads, "figures": figures}
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
