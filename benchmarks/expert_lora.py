"""Training steps with LoRA on all experts: Codemill against `peft` with `transformers`, on the same weights, in bf16.

    python benchmarks/expert_lora.py [--threads 2] [--repeats 3] --output results/expert_lora.json

Each is a process of its own. A step is forward and backward of one row of random tokens; the fastest counts, after one
that does not. PEFT adapts experts by `target_parameters`, which adds B A to all of a layer's experts in every pass; it
runs with each form of the experts that `transformers` has for training. The peak is that of the process's resident
size, beyond what it was before the model was loaded.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from training_workers import status
from transformers_speed import processor

SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 1024,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
RANK, TOKENS = 16, 1024
OURS, THEIRS = "codemill", {"peft, eager": "eager", "peft, grouped_mm": "grouped_mm"}
Step = tuple[Callable[[], Tensor], nn.Module]
"""What gives the logits [T, vocab], and what is trained."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--take", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.take:
        name, folder = arguments.take
        print("answer " + json.dumps(measure(name, Path(folder), arguments.threads, arguments.repeats)))
        return
    with TemporaryDirectory() as directory:
        prepare(Path(directory))
        found = {name: start(name, directory, arguments) for name in (OURS, *THEIRS)}
    report = {
        "machine": {"processor": processor(), "threads": arguments.threads},
        "versions": {name: version(name) for name in ("codemill", "torch", "peft", "transformers")},
        "command": " ".join(["python", "benchmarks/expert_lora.py", *sys.argv[1:]]),
        "shape": {**SHAPE, "rank": RANK, "tokens": TOKENS},
        "figures": found,
        "speed over the fastest of peft": found[OURS]["tokens/s"] / max(found[name]["tokens/s"] for name in THEIRS),
    }
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")


def prepare(folder: Path) -> None:
    """The model as `transformers` saves it, and an adapter."""
    import transformers

    from codemill.models import load_model
    from codemill.train.adapter import TrainableLora
    from codemill.train.lora_config import LoraSection

    torch.manual_seed(0)
    transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**SHAPE)).bfloat16().save_pretrained(folder / "model")
    adapter = TrainableLora(load_model(folder / "model"), LoraSection(rank=RANK, alpha=2 * RANK))
    with torch.no_grad():
        for each in adapter.each:
            each.b.normal_(std=0.01)
    adapter.save(folder / "adapter", "")


def start(name: str, directory: str, arguments: argparse.Namespace) -> dict[str, Any]:
    settings = ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
    command = [sys.executable, __file__, "--take", name, directory, *settings]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    (line,) = (line for line in output.splitlines() if line.startswith("answer "))
    print(name, line, file=sys.stderr, flush=True)
    return json.loads(line.removeprefix("answer "))


def measure(name: str, folder: Path, threads: int, repeats: int) -> dict[str, Any]:
    """In a process of its own."""
    torch.set_num_threads(threads)
    input_ids = torch.randint(SHAPE["vocab_size"], (1, TOKENS), generator=torch.Generator().manual_seed(1))
    load = load_codemill if name == OURS else load_peft
    before = status("VmRSS")
    logits, trained = load(folder, name, input_ids)
    times = []
    for _ in range(repeats + 1):
        trained.zero_grad()
        began = time.perf_counter()
        loss = nn.functional.cross_entropy(logits()[:-1].float(), input_ids[0, 1:])
        loss.backward()
        times.append(time.perf_counter() - began)
    return {
        "tokens/s": TOKENS / min(times[1:]),
        "seconds": times,
        "peak memory": status("VmHWM") - before,
        "loss": loss.item(),
        "trainable": sum(each.numel() for each in trained.parameters() if each.requires_grad),
    }


def load_codemill(folder: Path, name: str, input_ids: Tensor) -> Step:
    from codemill.train.batch import Batch
    from codemill.train.lora_config import LoraSection
    from codemill.train.lora_policy import load_lora_policy

    policy = load_lora_policy(folder / "model", LoraSection(init_from=str(folder / "adapter")), "bfloat16")
    zeros = torch.zeros_like(input_ids)
    batch = Batch(input_ids, torch.arange(TOKENS)[None], zeros, torch.ones(1, TOKENS))
    return lambda: policy.logits(policy.hidden_states(batch)[0]), policy.trained


def load_peft(folder: Path, name: str, input_ids: Tensor) -> Step:
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.bfloat16, experts_implementation=THEIRS[name]
    )
    adapted = peft.PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True).train()
    return lambda: adapted(input_ids).logits[0], adapted


if __name__ == "__main__":
    main()
