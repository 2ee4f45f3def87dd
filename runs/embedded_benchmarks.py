"""Scores the embedded model on public benchmarks with `codemill eval`, and writes them into its model card.

    python runs/embedded_benchmarks.py DATA [--model DIRECTORY] [--threads N]

DATA is a folder with the public files named in `BENCHMARKS`. Each run keeps its directory in runs/out/eval; one that
was stopped goes on, one that is complete is read. Figures go to runs/results/embedded_benchmarks.json, and the section
"Benchmarks" of the model's README.md is written anew.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "out" / "eval"
# Name of the run -> suite, file below DATA, words of the card.
BENCHMARKS = {
    "humaneval": ("humaneval", "humaneval/HumanEval.jsonl.gz", "HumanEval"),
    "mbpp-sanitized": ("mbpp", "mbpp/sanitized-mbpp.json", "MBPP, sanitized"),
    "infilling-single": (
        "humaneval-infilling",
        "humaneval_infilling/HumanEval-SingleLineInfilling.jsonl.gz",
        "HumanEval infilling, single line",
    ),
    "infilling-span": (
        "humaneval-infilling",
        "humaneval_infilling/HumanEval-RandomSpanInfilling.jsonl.gz",
        "HumanEval infilling, random span",
    ),
}
SECTION = """\
## Benchmarks

Measured by `codemill eval`, greedy, one sample a problem, `base` and `fim` prompts
(`runs/embedded_benchmarks.py`, figures in `runs/results/embedded_benchmarks.json`). They say how far 11 million
parameters and 9.6 million tokens of training are from a code model.

| benchmark | problems | pass@1 | 95 % interval |
|---|---|---|---|
{rows}

Of HumanEval it passes {passed}. The problems 13, 53, 55 and 60 (greatest common divisor, addition, Fibonacci numbers,
the sum to n) ask for what the task generator has among its classics, so they say nothing about new problems;
`codemill data clean` flags the training tasks of the first, whose usual solution is HumanEval's too.

"""


def run(name: str, data: Path, options: list[str]) -> dict[str, Any]:
    """The results of one benchmark: measured, or read where that is done."""
    directory, (suite, file, _) = RUNS / name, BENCHMARKS[name]
    state = directory / "run.json"
    if not (state.exists() and json.loads(state.read_text())["complete"]):
        program = Path(sys.executable).parent / "codemill"
        command = [str(program), "eval", suite, "--data", str(data / file)]
        subprocess.run([*command, "--output", str(directory), *options], check=True)
    results: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return results


def figures(results: dict[str, Any]) -> dict[str, Any]:
    kept = ("suite", "n", "pass@1", "interval", "verdicts", "versions", "data_sha256", "model_fingerprint", "seconds")
    passed = [problem["task_id"] for problem in results["problems"] if "ok" in problem["verdicts"]]
    return {name: results[name] for name in kept} | {"passed": passed}


def card_row(name: str, found: dict[str, Any]) -> str:
    interval = found["interval"]
    span = f"{interval['low']:.1%} to {interval['high']:.1%}"
    return f"| {BENCHMARKS[name][2]} | {found['n']} | {found['pass@1']:.1%} | {span} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=ROOT / "src" / "codemill" / "embedded")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    options = ["--model", str(arguments.model)]
    options += ["--threads", str(arguments.threads)] if arguments.threads else []
    found = {name: figures(run(name, arguments.data, options)) for name in BENCHMARKS}
    path = ROOT / "runs" / "results" / "embedded_benchmarks.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    rows = "\n".join(card_row(name, each) for name, each in found.items())
    passed = ", ".join(task_id.removeprefix("HumanEval/") for task_id in found["humaneval"]["passed"])
    section = SECTION.format(rows=rows, passed=passed)
    card = arguments.model / "README.md"
    text = re.sub(r"## Benchmarks\n.*?(?=## Limits)", "", card.read_text(), flags=re.DOTALL)
    card.write_text(text.replace("## Limits", section + "## Limits"))
    print(section)


if __name__ == "__main__":
    main()
