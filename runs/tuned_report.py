"""Gathers what `tuned.sh` measured: figures in results/tuned.json, curves and pass@1 in a picture.

python runs/tuned_report.py runs/out/tuned
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codemill.train.log import StepReport, TrainingLog

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"sft": "SFT", "dpo": "SFT, DPO", "lora": "SFT by LoRA"}
COLORS = {"sft": "tab:blue", "dpo": "tab:green", "lora": "tab:orange"}
WAYS = {"greedy": "greedy", "sampled, seed 0": "temperature 0.8"}
Logs = Mapping[str, Sequence[Sequence[StepReport]]]


def gather(directory: Path) -> dict[str, Any]:
    """The scores of every stage: of each seed, their mean, and their standard deviation."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted((directory / "eval").glob("*.json"))}
    names = {"base": "base, completing functions", "base_chat": "base, asked in chat"}
    result: dict[str, Any] = {text: scores([found[name]]) for name, text in names.items()}
    for stage, text in STAGES.items():
        seeds = [each for name, each in found.items() if name.startswith(stage + "-")]
        result[text] = scores(seeds) | training(read_logs(directory, stage))
    for path in sorted(directory.glob("pairs-*.jsonl")):
        result[STAGES["dpo"]].setdefault("pairs", []).append(len(path.read_text(encoding="utf-8").splitlines()))
    return result


def scores(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ways: dict[str, Any] = {}
    for way, name in WAYS.items():
        values = [each[way]["pass@1"] for each in seeds]
        spread = statistics.stdev(values) if len(values) > 1 else None
        ways[name] = {"n": seeds[0][way]["n"], "seeds": values, "mean": statistics.mean(values), "deviation": spread}
    return {"pass@1": ways}


def training(logs: Sequence[Sequence[StepReport]]) -> dict[str, Any]:
    """What a run took, as means over the seeds."""
    minutes = [sum(report.tokens / report.tokens_per_second for report in log) / 60 for log in logs]
    return {
        "steps": [len(log) for log in logs],
        "tokens": round(statistics.mean(sum(report.tokens for report in log) for log in logs)),
        "minutes": round(statistics.mean(minutes), 1),
    }


def read_logs(directory: Path, stage: str) -> list[list[StepReport]]:
    return [TrainingLog(path / "log.jsonl").read() for path in sorted(directory.glob(f"{stage}-*")) if path.is_dir()]


def draw(result: Mapping[str, Any], logs: Logs, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 6.5), layout="constrained")
    (loss, rewards), (margins, bars) = figure.subplots(2, 2)
    draw_losses(loss, logs)
    draw_metric(rewards, logs["dpo"], "reward_accuracy", "DPO: share of pairs with the passing answer likelier")
    draw_metric(margins, logs["dpo"], "reward_margin", "DPO: margin of the rewards")
    draw_scores(bars, result)
    for axes in (loss, rewards, margins):
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def draw_losses(axes: Any, logs: Logs) -> None:
    """Training losses thin, those on held-out tasks bold."""
    for stage in ("sft", "lora"):
        for number, log in enumerate(logs[stage]):
            axes.plot([each.step for each in log], [each.loss for each in log], color=COLORS[stage], lw=0.6, alpha=0.5)
            points = [(each.step, each.validation["validation"]) for each in log if each.validation]
            label = f"{STAGES[stage]}, held-out tasks" if number == 0 else None
            axes.plot(*zip(*points, strict=True), color=COLORS[stage], marker="o", ms=3, label=label)
    axes.set_yscale("log")
    axes.set_title("loss, nats a token", loc="left", fontsize=10)
    axes.legend(fontsize=8)


def draw_metric(axes: Any, logs: Sequence[Sequence[StepReport]], name: str, title: str) -> None:
    for log in logs:
        axes.plot([each.step for each in log], [each.metrics[name] for each in log], color=COLORS["dpo"], lw=1)
    axes.set_title(title, loc="left", fontsize=10)


def draw_scores(axes: Any, result: Mapping[str, Any]) -> None:
    """Means as bars, seeds as points."""
    stages = {name: each["pass@1"] for name, each in result.items() if "pass@1" in each}
    for shift, way in ((-0.2, "greedy"), (0.2, "temperature 0.8")):
        places = [number + shift for number in range(len(stages))]
        axes.bar(places, [each[way]["mean"] for each in stages.values()], width=0.38, alpha=0.6, label=way)
        for place, each in zip(places, stages.values(), strict=True):
            axes.plot([place] * len(each[way]["seeds"]), each[way]["seeds"], "k.", ms=4)
    axes.set_xticks(range(len(stages)), [name.replace(", ", ",\n") for name in stages], fontsize=7)
    axes.set_ylim(0, 1)
    axes.set_title("pass@1 on held-out tasks", loc="left", fontsize=10)
    axes.legend(fontsize=8)


def table(result: Mapping[str, Any]) -> str:
    """The scores for the page: means over the seeds, and the standard deviation where there is more than one."""
    rows = [f"| stage | {' | '.join(WAYS.values())} |", "|---|" + "---|" * len(WAYS)]
    for name, stage in result.items():
        rows.append(f"| {name} | {' | '.join(map(cell, stage['pass@1'].values()))} |")
    return "\n".join(rows)


def cell(score: Mapping[str, Any]) -> str:
    spread = "" if score["deviation"] is None else f" ± {100 * score['deviation']:.1f}"
    return f"{100 * score['mean']:.1f}{spread} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "results" / "tuned.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "tuned.svg")
    arguments = parser.parse_args()
    result = gather(arguments.directory)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    draw(result, {stage: read_logs(arguments.directory, stage) for stage in STAGES}, arguments.picture)
    print(table(result))


if __name__ == "__main__":
    main()
