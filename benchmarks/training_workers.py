"""The contestants of `training_speed.py`, each in a process of its own, which takes its turns on request."""

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from training_cases import Case, Conversation

STEPS = 10_000  # more than anybody waits for
LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-5, 0.01, 1.0


class Turns:
    """Steps are taken when a line on standard input says how many, and are answered by what they took.

    `begin` is called before every step, and waits where none is due; `count` tells what a step read.
    """

    def __init__(self, before_model: int) -> None:
        self.left, self.before_model = 0, before_model
        self.start = self.start_cpu = 0.0
        self.tokens = self.learned = 0

    def count(self, tokens: int, learned: int) -> None:
        self.tokens += tokens
        self.learned += learned

    def begin(self) -> None:
        if self.left == 0:
            self._answer()
            line = sys.stdin.readline()
            if not line:
                sys.stdout.flush()
                raise SystemExit(0)
            self.left, self.tokens, self.learned = int(line), 0, 0
            self.start, self.start_cpu = time.perf_counter(), time.process_time()
        self.left -= 1

    def _answer(self) -> None:
        answer = {
            "seconds": time.perf_counter() - self.start,
            "cpu seconds": time.process_time() - self.start_cpu,
            "tokens": self.tokens,
            "learned": self.learned,
            "memory": {"peak": status("VmHWM"), "before the model": self.before_model},
        }
        print("answer " + json.dumps(answer), flush=True)


def status(name: str) -> int:
    """A size in bytes of this process: VmRSS now, VmHWM the highest so far."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def train_codemill(directory: Path, case: Case, settings: dict[str, Any]) -> None:
    from codemill.data.packing import Document, pack
    from codemill.models import load_model
    from codemill.train.config import LoopConfig, OptimizerConfig
    from codemill.train.loop import Trainer
    from codemill.train.objective import CrossEntropy
    from codemill.train.policy import Policy
    from codemill.train.source import PackedSource

    turns = Turns(status("VmRSS"))
    rows = pack([document(each, Document) for each in case.conversations()], case.row, pad_id=0)
    loop = LoopConfig(
        steps=STEPS,
        rows_per_step=case.rows_per_step,
        rows_per_micro_batch=settings.get("rows", case.rows_per_step),
        precision=case.precision,
        recompute=case.recompute,
        evaluate_every=STEPS,
        checkpoint_every=STEPS,
    )
    optimizer = OptimizerConfig(
        name="adamw",
        lr=LEARNING_RATE,
        betas=(0.9, 0.999),
        warmup_steps=1,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
    )
    policy = Policy(load_model(directory, "float32", trainable=True))
    source = PackedSource(rows, loop)
    with tempfile.TemporaryDirectory() as output:
        trainer = Trainer(policy, CrossEntropy(), source, {}, loop, optimizer, Path(output))
        steps = trainer.run()
        for step in range(STEPS):
            turns.begin()
            report = next(steps)
            turns.count(report.tokens, sum(int(batch.learned.sum()) for batch in source.micro_batches(step)))


def document(conversation: Conversation, kind: Any) -> Any:
    ids, first = conversation
    return kind.of(ids, [0.0] * first + [1.0] * (len(ids) - first))


def train_trl(directory: Path, case: Case, settings: dict[str, Any]) -> None:
    """`settings`: packing, rows (of a micro-batch), experts (the implementation)."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    turns = Turns(status("VmRSS"))
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for ids, first in case.conversations():
        columns["input_ids"].append(ids)
        columns["labels"].append([-100] * first + ids[first:])

    class Gate(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.begin()

    class Counting(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            mask = inputs.get("attention_mask")
            learned = int((inputs["labels"][:, 1:] != -100).sum())
            turns.count(inputs["input_ids"].numel() if mask is None else int(mask.sum()), learned)
            return super().training_step(model, inputs, num_items_in_batch)

    is_packed = settings["packing"]
    mean = sum(map(len, columns["input_ids"])) / len(columns["input_ids"])
    step_size = case.rows_per_step if is_packed else round(case.rows_per_step * case.row / mean)
    micro = settings.get("rows", step_size)
    options = {"experts_implementation": settings["experts"]} if "experts" in settings else {}
    options |= {"dtype": torch.float32, "attn_implementation": "sdpa"}
    model = AutoModelForCausalLM.from_pretrained(directory, **options)
    with tempfile.TemporaryDirectory() as output:
        config = SFTConfig(
            output_dir=output,
            use_cpu=True,
            packing=is_packed,
            max_length=case.row,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=step_size // micro,
            train_sampling_strategy="random" if is_packed else "group_by_length",
            max_steps=STEPS,
            bf16=case.precision == "bfloat16",
            gradient_checkpointing=case.recompute,
            optim="adamw_torch_fused",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_GRAD_NORM,
            router_aux_loss_coef=0.0 if "experts" in settings else None,
            logging_steps=STEPS,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(directory)
        trainer = Counting(
            model, config, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer, callbacks=[Gate()]
        )
        trainer.train()


def main(arguments: Sequence[str]) -> None:
    library, directory, case, settings, threads = arguments
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))
    train = {"codemill": train_codemill, "trl": train_trl}[library]
    train(Path(directory), Case(**json.loads(case)), json.loads(settings))


if __name__ == "__main__":
    main(sys.argv[1:])
