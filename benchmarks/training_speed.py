"""Supervised fine-tuning beside TRL: tokens per second and peak memory on the same conversations, in one run.

    python benchmarks/training_speed.py [--threads 2] [--rounds 3] [--only 0,3,6] --output results/training_speed.json

Every contestant is a process of its own with the same random weights, the same token ids, the same tokens to learn, and
fused AdamW over float32 weights. TRL runs in several settings, of which the fastest counts: with packing and with
padding (batches of like lengths), rows one at a time or together, and for experts each implementation that
`transformers` has for training. First each runs alone (the survey: peak memory, and which of TRL is the fastest); then
ours and the fastest of TRL take turns, a few steps at a time, and medians are reported; the ratio is the median of the
ratios of neighbours. The survey may be made beside other work, the duel (`--phase duel`) on a quiet machine. A token is
one of a conversation, learned or not, never padding.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from training_cases import MODELS, Case
from transformers_speed import peak_operations, processor

HERE = Path(__file__).parent
CASES = (
    Case("dense", "bfloat16"),
    Case("dense", "bfloat16", "equal", 1.0),
    Case("dense", "float32", rows_per_step=1),
    Case("dense, small vocabulary", "bfloat16"),
    Case("dense, small vocabulary", "bfloat16", "equal", 1.0),
    Case("dense, small vocabulary", "float32"),
    Case("moe, 64 experts", "bfloat16"),
    Case("moe, 64 experts", "bfloat16", "equal", 1.0),
    Case("moe, 64 experts", "float32"),
)
OURS = "codemill"
Settings = dict[str, Any]


def contestants(case: Case) -> dict[str, tuple[str, Settings]]:
    """Name -> library and settings. Padding makes no difference where all conversations are as long as a row."""
    forms = {"packed": {"packing": True}, "packed, a row at a time": {"packing": True, "rows": 1}}
    if case.rows_per_step == 1:
        del forms["packed, a row at a time"]
    if case.lengths == "equal":
        forms = {"": {"packing": False}, "a row at a time": {"packing": False, "rows": 1}}
    else:
        forms["padded"] = {"packing": False}
    found: dict[str, tuple[str, Settings]] = {OURS: ("codemill", {})}
    for experts in ("eager", "grouped_mm") if "moe" in case.model else (None,):
        for name, settings in forms.items():
            extra = {} if experts is None else {"experts": experts}
            found[", ".join(filter(None, ("TRL", name, experts)))] = ("trl", settings | extra)
    return found


class Contestant:
    """A process that trains when it is told to."""

    def __init__(self, library: str, settings: Settings, directory: Path, case: Case, threads: int) -> None:
        arguments = [library, str(directory), json.dumps(asdict(case)), json.dumps(settings), str(threads)]
        command = [sys.executable, str(HERE / "training_workers.py"), *arguments]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise SystemExit(f"{' '.join(self.process.args[1:])} ended early")

    def take(self, steps: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


Turns = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Arena:
    """A case, and its checkpoint for contestants to load."""

    case: Case
    directory: Path
    threads: int
    steps: int

    def play(self, names: Sequence[str], rounds: int) -> Turns:
        """The turns of each, alternating; one before them warms up."""
        every = contestants(self.case)
        workers = {name: Contestant(*every[name], self.directory, self.case, self.threads) for name in names}
        turns: Turns = {name: [] for name in names}
        for number in range(-1, rounds):
            for name, worker in workers.items():
                turn = worker.take(self.steps if number >= 0 else 1)
                if number >= 0:
                    turns[name].append(turn)
        for worker in workers.values():
            worker.close()
        return turns

    def survey(self) -> Turns:
        """A turn of each contestant, alone."""
        found: Turns = {}
        for name in contestants(self.case):
            found |= self.play([name], 1)
            print(f"{name}: {rate(found[name][0]):,.0f} tokens/s", file=sys.stderr, flush=True)
        return found


def fastest_rival(survey: Turns) -> str:
    return max((name for name in survey if name != OURS), key=lambda name: rate(survey[name][0]))


def rate(turn: dict[str, Any]) -> float:
    return turn["tokens"] / turn["seconds"]


def save_random(case: Case, directory: Path) -> Path:
    """A checkpoint of the case's shape that both libraries load."""
    from codemill.models import CausalLM, save_pretrained
    from codemill.models.initialize import initialize
    from codemill.spec import resolve

    model = CausalLM(case.config)
    initialize(model, 0)
    save_pretrained(model, directory, tokenizer_files_from=resolve(None).directory)
    return directory


def summarise(case: Case, survey: Turns, duel: Turns, operations_per_second: float) -> dict[str, Any]:
    """The figures of a case; `survey` stays as it was measured, for a duel at another time."""
    figures_of = {name: figures(case, turns, operations_per_second) for name, turns in {**survey, **duel}.items()}
    (rival,) = set(duel) - {OURS}
    ratios = [rate(ours) / rate(theirs) for ours, theirs in zip(duel[OURS], duel[rival], strict=True)]
    return {
        "fastest of TRL": rival,
        "speed over it": statistics.median(ratios),
        "its peak memory over ours": figures_of[rival]["peak memory"] / figures_of[OURS]["peak memory"],
        "operations/s of a large product": operations_per_second,
        "duel": {name: figures_of[name] for name in duel},
        "survey, one turn each": {name: figures_of[name] for name in survey if name not in duel},
    }


def figures(case: Case, turns: list[dict[str, Any]], operations_per_second: float) -> dict[str, Any]:
    """Medians of a contestant, and beside them what the machine's matrix products would allow."""
    speed = statistics.median(map(rate, turns))
    learned = sum(turn["learned"] for turn in turns) / sum(turn["tokens"] for turn in turns)
    mean_length = statistics.mean(len(ids) for ids, _ in case.conversations())
    roofline = operations_per_second / training_operations(case, learned, mean_length)
    memory = turns[-1]["memory"]
    return {
        "tokens/s": speed,
        "tokens a turn": statistics.mean(turn["tokens"] for turn in turns),
        "learned": learned,
        "roofline": roofline,
        "fraction": speed / roofline,
        "peak memory": memory["peak"],
        "memory before the model": memory["before the model"],
    }


def training_operations(case: Case, learned: float, mean_length: float) -> float:
    """Operations a token, forward and backward (three products for each weight): active weights, attention over half of
    a conversation, and the head for learned tokens only."""
    from codemill.footprint import count_active_parameters

    config = case.config
    head = config.vocab_size * config.hidden_size
    weights = count_active_parameters(config) - head * (1 if config.tie_word_embeddings else 2) + learned * head
    attention = config.num_hidden_layers * config.num_attention_heads * config.head_dim * mean_length
    return 6 * (weights + attention)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--only", help="the cases whose number, from 0, is in this list, as 0,3,6")
    parser.add_argument(
        "--phase", choices=("survey", "duel"), help="one of the two; the other is, or will be, elsewhen"
    )
    parser.add_argument("--rival", help="of the duel, where no survey was made: such as 'TRL, packed'")
    parser.add_argument("--output", type=Path, required=True, help="cases that are not measured now stay in it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    numbers = map(int, arguments.only.split(",")) if arguments.only else range(len(CASES))
    for case in (CASES[number] for number in numbers):
        results = json.loads(arguments.output.read_text())["cases"] if arguments.output.exists() else {}
        results[case.title] = run_case(case, arguments, results.get(case.title, {}))
        print(json.dumps({case.title: results[case.title].get("summary")}, indent=1), flush=True)
        arguments.output.write_text(json.dumps(report(arguments, results), indent=1) + "\n")


def run_case(case: Case, arguments: argparse.Namespace, before: dict[str, Any]) -> dict[str, Any]:
    """What is known of the case after the phases that are wanted now."""
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(case, save_random(case, Path(folder) / "model"), arguments.threads, arguments.steps)
        survey = before.get("survey", {}) if arguments.phase == "duel" else arena.survey()
        result = {**before, **asdict(case), "survey": survey}
        if arguments.phase != "survey":
            peak = peak_operations(getattr(torch, case.precision))
            rival = fastest_rival(survey) if survey else arguments.rival
            duel = arena.play([OURS, rival], arguments.rounds)
            result["summary"] = summarise(case, survey, duel, peak)
    return result


def report(arguments: argparse.Namespace, cases: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": {"processor": processor(), "threads": arguments.threads},
        "versions": {name: version(name) for name in ("codemill", "torch", "transformers", "trl")},
        "command": " ".join(["python", "benchmarks/training_speed.py", *sys.argv[1:]]),
        "models": MODELS,
        "cases": cases,
    }


if __name__ == "__main__":
    main()
