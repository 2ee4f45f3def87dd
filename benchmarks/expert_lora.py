"""Training steps with LoRA on all experts: Codemill against `peft` with `transformers`, on the same weights.

python benchmarks/expert_lora.py [threads] prints seconds a step (forward and backward), the better of two, the
adapters' trainable parameters, and how far the losses are apart.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import peft
import torch
import transformers
from torch import Tensor, nn

from codemill.config import ModelConfig
from codemill.models import CausalLM
from codemill.train.adapter import TrainableLora
from codemill.train.lora_config import LoraSection

CONFIG = transformers.Qwen3MoeConfig(
    vocab_size=4096,
    hidden_size=512,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    intermediate_size=1024,
    num_experts=64,
    num_experts_per_tok=8,
    moe_intermediate_size=256,
    norm_topk_prob=True,
    tie_word_embeddings=False,
)
SECTION = LoraSection(rank=16, alpha=32)
ROWS, TOKENS, REPEATS = 1, 512, 2


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    torch.manual_seed(0)
    theirs = transformers.Qwen3MoeForCausalLM(CONFIG).eval()
    ours = CausalLM(ModelConfig.from_dict(CONFIG.to_dict())).eval()
    ours.load_state_dict(theirs.state_dict())
    adapter = TrainableLora(ours.requires_grad_(False), SECTION)
    with TemporaryDirectory() as directory:
        adapter.save(Path(directory), "")
        adapted = peft.PeftModel.from_pretrained(theirs, directory, is_trainable=True).eval()
    input_ids = torch.randint(CONFIG.vocab_size, (ROWS, TOKENS))
    losses, seconds = {}, {}
    for name, logits, module in (
        ("codemill", lambda: ours(input_ids, adapters=[adapter.lora] * ROWS), adapter),
        ("peft", lambda: adapted(input_ids).logits, adapted),
    ):
        losses[name], seconds[name] = measure(logits, module, input_ids)
    found = {
        "seconds": seconds,
        "ratio": seconds["peft"] / seconds["codemill"],
        "loss_difference": abs(losses["peft"] - losses["codemill"]),
        "trainable": sum(each.numel() for each in adapter.parameters()),
        "tokens": ROWS * TOKENS,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "peft": peft.__version__, "transformers": transformers.__version__},
    }
    print(json.dumps(found, indent=2))


def measure(logits: Callable[[], Tensor], module: nn.Module, input_ids: Tensor) -> tuple[float, float]:
    """The loss, and the seconds of the fastest step after one that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        module.zero_grad()
        began = time.perf_counter()
        loss = nn.functional.cross_entropy(logits()[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
        loss.backward()
        times.append(time.perf_counter() - began)
    return loss.item(), min(times[1:])


if __name__ == "__main__":
    main()
