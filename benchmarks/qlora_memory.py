"""Peak memory and speed of training an adapter on a frozen model in bf16, in 8 bits and in 4 (QLoRA).

    python benchmarks/qlora_memory.py [--threads 2] [--steps 2] [--only 0,1] --output results/qlora_memory.json

Each is a process of its own, which runs what `codemill train sft` does, on random weights and conversations of random
words: rows of 1,024 tokens, one at a time and layers recomputed, LoRA of rank 16 on all linear layers and experts. The
peak is the largest resident size of the process (VmHWM), with pages of the checkpoint; beside it is what `--dry-run`
says beforehand.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from training_workers import status
from transformers_speed import processor

_COMMON = {"vocab_size": 4096, "max_position_embeddings": 4096, "tie_word_embeddings": True, "rope_theta": 1e6}
_DENSE = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 20}
_EXPERTS = {"num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 384, "norm_topk_prob": True}
SHAPES = {
    # 20 of the 28 layers of Qwen3-0.6B, under a head for the tokens of the embedded model.
    "dense": {
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        **_DENSE,
        **_COMMON,
    },
    "moe, 64 experts": {
        "model_type": "qwen3_moe",
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 6,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        **_EXPERTS,
        **_COMMON,
    },
}
BASES = ("", "int8", "int4")
CONFIGURATION = """
output = "{folder}/run{base}"
model = "{folder}/model"
data = {{ train = "{folder}/train.jsonl", context = 1024 }}
lora = {{ rank = 16, alpha = 32, quantization = "{base}" }}
loop = {{ steps = {steps}, rows_per_step = 1, rows_per_micro_batch = 1, precision = "bfloat16", recompute = true }}
optimizer = {{ name = "adamw", lr = 1e-4 }}
"""


def prepare(shape: dict[str, Any], folder: Path) -> int:
    """A checkpoint and conversations; returns the parameters."""
    from codemill.config import ModelConfig
    from codemill.models import CausalLM, save_pretrained
    from codemill.models.initialize import initialize
    from codemill.spec import resolve

    model = CausalLM(ModelConfig.from_dict({**shape, "dtype": "bfloat16"}, "benchmark"))
    initialize(model, 0)
    save_pretrained(model.bfloat16(), folder / "model", tokenizer_files_from=resolve(None).directory)
    rng = random.Random(0)
    words = ["def", "return", "for", "x", "y", "in", "range", "print", "(", ")", ":", "=", "+", "1", "2"]
    with (folder / "train.jsonl").open("w") as file:
        for _ in range(120):
            prompt, answer = (" ".join(rng.choices(words, k=150)) for _ in range(2))
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return sum(parameter.numel() for parameter in model.parameters())


def train(path: Path, threads: int) -> dict[str, Any]:
    """In a process of its own."""
    from codemill.train.config_file import load_config
    from codemill.train.sft import Sft
    from codemill.train.sft_config import SftConfig

    torch.set_num_threads(threads)
    run = Sft(load_config(SftConfig, path))
    plan, before = run.plan(), status("VmRSS")
    trainer = run.start()
    loaded = {"resident after loading": status("VmRSS"), "peak of loading": status("VmHWM")}
    reports = list(trainer.run())
    peak, estimate = status("VmHWM"), sum(plan.memory.values())
    return {
        "trainable": plan.trainable,
        "resident before loading": before,
        **loaded,
        "peak": peak,
        "estimate": estimate,
        "estimate over peak": estimate / peak,
        "estimate by purpose": dict(plan.memory),
        "tokens/s": max(report.tokens_per_second for report in reports[1:]),
        "losses": [report.loss for report in reports],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--only", help="the shapes whose number, from 0, is in this list, as 0,1")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        print("answer " + json.dumps(train(arguments.train, arguments.threads)))
        return
    numbers = map(int, arguments.only.split(",")) if arguments.only else range(len(SHAPES))
    for name in (list(SHAPES)[number] for number in numbers):
        cases = json.loads(arguments.output.read_text())["cases"] if arguments.output.exists() else {}
        cases[name] = measure(SHAPES[name], arguments)
        arguments.output.write_text(json.dumps(report(arguments, cases), indent=1) + "\n")


def measure(shape: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        found: dict[str, Any] = {"parameters": prepare(shape, folder)}
        for base in BASES:
            path = folder / f"lora{base}.toml"
            path.write_text(CONFIGURATION.format(folder=folder, base=base, steps=arguments.steps))
            command = [sys.executable, __file__, "--train", str(path), "--threads", str(arguments.threads)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            (line,) = (line for line in output.splitlines() if line.startswith("answer "))
            found[base or "bf16"] = json.loads(line.removeprefix("answer "))
            print(base or "bf16", json.dumps(found[base or "bf16"]), file=sys.stderr, flush=True)
    return found


def report(arguments: argparse.Namespace, cases: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": {"processor": processor(), "threads": arguments.threads},
        "versions": {name: version(name) for name in ("codemill", "torch")},
        "command": " ".join(["python", "benchmarks/qlora_memory.py", *sys.argv[1:]]),
        "shapes": SHAPES,
        "cases": cases,
    }


if __name__ == "__main__":
    main()
