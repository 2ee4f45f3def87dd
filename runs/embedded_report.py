"""Measures the embedded model and writes its report: figures, loss curve, model card.

    python runs/embedded_report.py runs/out/embedded_2/model

Everything is measured on text and tasks that no training row contains (see `codemill.data`): whole library modules,
and tasks whose combination of operations was held out. Programs that the model writes run in the sandbox, as the
`tasks` suite of `codemill eval` runs them.
"""

import argparse
import gzip
import itertools
import json
import lzma
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from codemill import LLM, SamplingParams
from codemill.chat.prompts import fim_ids
from codemill.data.chunks import chunk_modules
from codemill.data.corpus import Module, split_modules, stdlib_modules
from codemill.data.fim import FimExample, single_line_example
from codemill.data.synthesis import SyntheticTask, generate_tasks
from codemill.eval.suite import Style
from codemill.eval.synthetic_tasks import SEED, SyntheticTasks, task_problem
from codemill.sandbox.pool import SandboxPool
from codemill.sandbox.result import Status
from codemill.train.config import PretrainConfig
from codemill.train.config_file import load_config
from codemill.train.log import StepReport, TrainingLog
from codemill.train.pretrain import held_out_modules

ROOT = Path(__file__).resolve().parents[1]
FIM_TOKENS = 448  # of a module around the missing line


def bits_per_byte(llm: LLM, modules: Sequence[Module], stride: int = 512) -> float:
    """Code length of the modules under the model: windows of the whole context, each token predicted once."""
    bits = num_bytes = 0.0
    for module in modules:
        ids = llm.tokenizer.encode(module.text)
        bits += math.log2(llm.model.config.vocab_size)  # nothing predicts the first token
        for start in range(0, max(1, len(ids) - stride), stride):
            window = torch.tensor([ids[start : start + llm.max_model_len]])
            with torch.inference_mode():
                logits = llm.model(window[:, :-1])[0].float()
            losses = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none")
            seen = 0 if start == 0 else llm.max_model_len - stride - 1
            bits += float(losses[seen:].sum()) / math.log(2)
        num_bytes += len(module.text.encode())
    return bits / num_bytes


class NGram:
    """A token n-gram model with Witten-Bell interpolation (Witten and Bell 1991), the classical baseline."""

    def __init__(self, order: int, vocab_size: int) -> None:
        self.order, self.vocab_size = order, vocab_size
        self.counts: list[dict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(order)]

    def learn(self, ids: Sequence[int]) -> None:
        for i, token in enumerate(ids):
            for n in range(min(self.order, i + 1)):
                self.counts[n][tuple(ids[i - n : i])][token] += 1

    def probability(self, history: Sequence[int], token: int) -> float:
        probability = 1 / self.vocab_size
        for n in range(min(self.order, len(history) + 1)):
            followers = self.counts[n].get(tuple(history[len(history) - n :]))
            if followers:
                total, kinds = followers.total(), len(followers)
                probability = (followers[token] + kinds * probability) / (total + kinds)
        return probability

    def bits_per_byte(self, texts: Iterable[tuple[Sequence[int], int]]) -> float:
        bits = num_bytes = 0.0
        for ids, size in texts:
            bits -= sum(math.log2(self.probability(ids[max(0, i - 8) : i], token)) for i, token in enumerate(ids))
            num_bytes += size
        return bits / num_bytes


def compression(tokenizer: Tokenizer, train: Sequence[Module], held_out: Sequence[Module]) -> dict[str, float]:
    """Bits per byte of the classical compressors and of n-grams trained on what the model was trained on."""
    data = "\n".join(module.text for module in held_out).encode()
    ngram = NGram(4, tokenizer.get_vocab_size())
    for module in train:
        ngram.learn(tokenizer.encode(module.text).ids)
    pairs = [(tokenizer.encode(module.text).ids, len(module.text.encode())) for module in held_out]
    return {
        "gzip -9": 8 * len(gzip.compress(data, 9)) / len(data),
        "xz -9e": 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data),
        "4-gram of the same tokens, trained on the same modules": ngram.bits_per_byte(pairs),
    }


def module_lines(tokenizer: Tokenizer, modules: Sequence[Module], count: int) -> list[FimExample]:
    """One missing line in a stretch of a module."""
    rng = random.Random(0)
    chunks = [chunk.text for chunk in chunk_modules(tokenizer, modules, FIM_TOKENS)]
    examples = [example for chunk in chunks * 20 if (example := single_line_example(chunk, rng))]
    return rng.sample(examples, min(count, len(examples)))


def task_lines(tasks: Sequence[SyntheticTask]) -> list[FimExample]:
    """One missing line in each task's function, with the function of another task before and after it."""
    rng = random.Random(0)
    functions = [task.prompt + task.solution for task in tasks]
    examples = []
    for i, task in enumerate(tasks):
        before, after = functions[i - 1] + "\n\n", "\n\n" + functions[i - 2]
        if hole := single_line_example(task.solution, rng):
            examples.append(FimExample(before + task.prompt + hole.prefix, hole.middle, hole.suffix + after))
    return examples


def single_line_fim(llm: LLM, examples: Sequence[FimExample]) -> dict[str, Any]:
    """Exact match of the missing line, white space at the ends aside."""
    prompts = [fim_ids(llm.tokenizer, example.prefix, example.suffix) for example in examples]
    params = SamplingParams(temperature=0.0, max_tokens=64, stop_token_ids=llm.tokenizer.fim_stop_ids)
    outputs = llm.generate(prompts, params)
    hits = sum(o.outputs[0].text.strip() == e.middle.strip() for o, e in zip(outputs, examples, strict=True))
    return {"n": len(examples), "exact_match": hits / len(examples)}


def pass_at_1(llm: LLM, tasks: Sequence[SyntheticTask], style: Style) -> dict[str, Any]:
    """Greedy pass@1, in all and by the number of operations, completing the function or answering a chat."""
    params = SamplingParams(temperature=0.0, max_tokens=200)
    if style == "chat":
        outputs = llm.chat([[{"role": "user", "content": task.instruction}] for task in tasks], params)
    else:
        outputs = llm.generate([task.prompt for task in tasks], params)
    verdicts = judge(tasks, [output.outputs[0].text for output in outputs], style)
    by_operations: dict[int, list[bool]] = defaultdict(list)
    for task, verdict in zip(tasks, verdicts, strict=True):
        by_operations[len(task.operations)].append(verdict == "ok")
    share = {str(n): sum(results) / len(results) for n, results in sorted(by_operations.items())}
    return {"n": len(tasks), "pass@1": verdicts.count("ok") / len(tasks), "by number of operations": share}


def judge(tasks: Sequence[SyntheticTask], texts: Sequence[str], style: Style) -> list[Status]:
    """The verdict of the `tasks` suite on what the model wrote for each task."""
    suite = SyntheticTasks()
    with SandboxPool(preload=suite.preload()) as pool, ThreadPoolExecutor(pool.num_workers) as threads:

        def verdict(task: SyntheticTask, text: str) -> Status:
            problem = task_problem(task)
            return suite.judge(problem, suite.clean(problem, text, style), pool.run).verdict

        verdicts = list(threads.map(verdict, tasks, texts))
    if "harness error" in verdicts:
        raise SystemExit("the sandbox failed: see `codemill sandbox --check`")
    return verdicts


def measure(llm: LLM, directory: Path, config: PretrainConfig, num_tasks: int, num_holes: int) -> dict[str, Any]:
    train, held_out = split_modules(stdlib_modules(), config.data.held_out_fraction)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    held_out_tasks, seen_tasks = (
        list(itertools.islice(generate_tasks(SEED, held_out=flag), num_tasks)) for flag in (True, False)
    )
    return {
        "bits per byte": {"embedded model": bits_per_byte(llm, held_out), **compression(tokenizer, train, held_out)},
        "single-line FIM, held-out modules": single_line_fim(llm, module_lines(tokenizer, held_out, num_holes)),
        "single-line FIM, held-out tasks": single_line_fim(llm, task_lines(held_out_tasks)),
        "held-out combinations": pass_at_1(llm, held_out_tasks, "base"),
        "held-out combinations, as chat": pass_at_1(llm, held_out_tasks, "chat"),
        "new tasks of seen combinations": pass_at_1(llm, seen_tasks, "base"),
    }


def draw_loss(reports: Sequence[StepReport], path: Path) -> None:
    """Training loss (smoothed) and both validation losses over the steps of both stages."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    smooth, losses = reports[0].loss, []
    for report in reports:
        smooth = 0.95 * smooth + 0.05 * report.loss
        losses.append(smooth)
    axes.plot([report.step for report in reports], losses, label="training (smoothed, weighted tokens)")
    measured = [report for report in reports if report.validation]
    for name, label in (("modules", "held-out library modules"), ("tasks", "held-out tasks (solutions)")):
        points = [(report.step, report.validation[name]) for report in measured if report.validation]
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xlabel="step", ylabel="loss (nats per token)", ylim=(0, 6), title="The embedded model")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the model's directory")
    parser.add_argument("--note", default="", help="a sentence on how this training differed from the script")
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--holes", type=int, default=500)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "results" / "embedded.json")
    arguments = parser.parse_args()
    configs = [load_config(PretrainConfig, ROOT / "runs" / name) for name in ("embedded.toml", "embedded_2.toml")]
    reports = read_logs(configs)
    llm = LLM(arguments.model)
    result = measure(llm, arguments.model, configs[0], arguments.tasks, arguments.holes)
    result["training"] = training_facts(reports, configs[0]) | {"note": arguments.note}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    draw_loss(reports, arguments.model / "embedded_loss.png")
    num_parameters = sum(parameter.numel() for parameter in llm.model.parameters())
    write_card(result, configs, num_parameters, arguments.model / "README.md")
    print(json.dumps(result, indent=2))


CARD = """\
---
license: apache-2.0
library_name: codemill
pipeline_tag: text-generation
---

# The embedded model of Codemill

{parameters:.1f} million parameters, Qwen3 architecture, byte-level BPE of {vocab_size} tokens with Qwen's control
tokens, context of {context} tokens, bf16. It ships inside the package so that Codemill can be tried, tested and taught
without a download. It is a demonstration, not an assistant: it writes short Python functions from docstrings in the
style of its training tasks, fills in lines, and knows nothing else.

## Training

{steps} steps of 8,192 tokens, {tokens:.1f} million tokens, {hours} hours on one core, from random weights, with
Codemill's own code, by `runs/embedded.sh`. {note}

- The Python standard library without its tests (PSF licence), half of it with a hole to fill (FIM); whole top-level
  modules are held out: {held_out_modules}.
- Up to {tasks:,} small programming tasks of our own generator, as functions to complete, with holes, and as chat. A
  task is composed of one to three of 197 operations on lists, strings, numbers and dictionaries; every solution was
  run before it was used. A tenth of the combinations of operations is held out.

No benchmark's problems, and no text from elsewhere.

![training and validation loss](embedded_loss.png)

The second stage starts at step {second_stage}. Its validation texts are cut shorter and its tasks are others, so the
curves of the two stages are close to, but not exactly, comparable.

## Figures

Measured by `runs/embedded_report.py` on what training never saw; greedy decoding.

| held-out library modules, bits per byte | |
|---|---|
{compression}

The compressors start from nothing; the n-gram and the model were trained on the same modules.

| task | n | share |
|---|---|---|
{scores}

pass@1 by number of operations in a held-out combination: {by_operations}.

## Limits

The docstrings of the tasks come from a grammar: their wording is narrow, and so is what the model understands. A
held-out combination is new as a whole, but each of its operations was seen in others. Outside such tasks it continues
text in the style of the library, usually without sense. Missing lines of real modules are beyond it. The tokenizer
joins a colon to the newline after it, so a prompt should end before a colon (`def is_even(n: int)`) or after the
newline. Do not run what it writes without reading it.
"""


def write_card(result: dict[str, Any], configs: Sequence[PretrainConfig], num_parameters: int, path: Path) -> None:
    """The model card: the figures of `result` in words that say what they mean."""
    config = configs[0]
    names = {
        "held-out combinations": "function from its docstring, held-out combinations: pass@1",
        "held-out combinations, as chat": "the same asked in chat: pass@1",
        "new tasks of seen combinations": "function from its docstring, new tasks of any kind: pass@1",
    }
    scores = [f"| {text} | {result[key]['n']} | {result[key]['pass@1']:.1%} |" for key, text in names.items()]
    holes = {
        "single-line FIM, held-out tasks": "one missing line of a held-out task, between other functions",
        "single-line FIM, held-out modules": f"one missing line in {FIM_TOKENS} tokens of a held-out module",
    }
    for key, text in holes.items():
        scores.append(f"| {text}: exact match | {result[key]['n']} | {result[key]['exact_match']:.1%} |")
    by_operations = result["held-out combinations"]["by number of operations"]
    training = result["training"]
    card = CARD.format(
        parameters=num_parameters / 1e6,
        vocab_size=config.data.vocab_size,
        context=config.model.max_position_embeddings,
        steps=training["steps"],
        second_stage=config.loop.steps,
        tokens=training["tokens"] / 1e6,
        hours=training["hours"],
        note=training["note"],
        held_out_modules=", ".join(sorted({f"`{module.top_level}`" for module in held_out_modules(config.data)})),
        tasks=sum(config.data.tasks for config in configs),
        compression="\n".join(f"| {name} | {value:.3f} |" for name, value in result["bits per byte"].items()),
        scores="\n".join(scores),
        by_operations=", ".join(f"{n}: {share:.1%}" for n, share in by_operations.items()),
    )
    path.write_text(card, encoding="utf-8")


def read_logs(configs: Sequence[PretrainConfig]) -> list[StepReport]:
    """The steps of all stages, numbered through."""
    reports: list[StepReport] = []
    for config in configs:
        done = len(reports)
        log = TrainingLog(ROOT / config.output / "log.jsonl")
        reports += [replace(report, step=done + report.step) for report in log.read()]
    return reports


def training_facts(reports: Sequence[StepReport], config: PretrainConfig) -> dict[str, Any]:
    tokens = config.loop.rows_per_step * config.data.context
    seconds = sum(tokens / report.tokens_per_second for report in reports)
    return {"steps": len(reports), "tokens": len(reports) * tokens, "hours": round(seconds / 3600, 2)}


if __name__ == "__main__":
    main()
