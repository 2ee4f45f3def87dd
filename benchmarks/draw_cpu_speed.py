"""Draws what `cpu_speed.py` measured: tokens/s beside the peers' and the machine's limit.

    python benchmarks/draw_cpu_speed.py [RESULTS.json] [PICTURE.svg]

By default benchmarks/results/cpu_speed.json and docs/cpu_speed.svg. Needs matplotlib.
"""

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RESULTS, PICTURE = FOLDER / "results" / "cpu_speed.json", FOLDER.parent / "docs" / "cpu_speed.svg"
PARTS = {"int4": "4 bits", "int8": "8 bits", "bf16": "bf16"}
FIGURES = ("decode after 0", "decode after 512", "decode after 512, batch 8", "prefill 512", "prefill 2048")
COLOURS = {"codemill": "#1b6ca8", "llama.cpp": "#c96b2c", "openvino": "#7a5fa8", "transformers": "#8a8a8a"}
LIMIT = "the machine's limit"


def values(part: dict[str, Any], name: str) -> dict[str, float]:
    """Tokens per second by engine, and the limit."""
    for figure in part.get("figures", ()):
        if figure["name"] == name:
            peers = {peer: found["value"] for peer, found in figure.get("peers", {}).items()}
            return {"codemill": figure["value"], **peers, LIMIT: figure["roofline"]}
    return {}


def draw_panel(axes: Any, parts: dict[str, Any], name: str) -> None:
    """One figure: a group of bars for each precision."""
    engines = [each for each in COLOURS if any(each in values(part, name) for part in parts.values())]
    width = 0.8 / max(len(engines), 1)
    for group, key in enumerate(PARTS):
        found = values(parts.get(key, {}), name)
        for number, engine in enumerate(engines):
            if engine in found:
                x = group - 0.4 + (number + 0.5) * width
                bar = axes.bar(x, found[engine], 0.9 * width, color=COLOURS[engine], label=engine)
                axes.bar_label(bar, fmt="%.0f", fontsize=7)
        if LIMIT in found and name.startswith("decode"):
            axes.hlines(found[LIMIT], group - 0.4, group + 0.4, color="black", linewidth=1, label=LIMIT)
    axes.set_title(f"{name}, tokens/s", fontsize=9)
    axes.set_xticks(range(len(PARTS)), PARTS.values(), fontsize=8)
    axes.tick_params(axis="y", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def draw(results: dict[str, Any], target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "codemill"  # the same figures give the same file
    from matplotlib import pyplot

    parts = {key: part for key, part in results["parts"].items() if key in PARTS}
    shown = [name for name in FIGURES if any(values(part, name) for part in parts.values())]
    figure, panels = pyplot.subplots(1, len(shown), figsize=(max(7.0, 2.6 * len(shown)), 3), squeeze=False)
    for axes, name in zip(panels[0], shown, strict=True):
        draw_panel(axes, parts, name)
    labels = {
        label: handle for axes in panels[0] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labels.values(), labels.keys(), loc="lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else PICTURE
    if not source.exists():
        raise SystemExit(f"{source} does not exist: run benchmarks/cpu_speed.py --output {source} first")
    draw(json.loads(source.read_text()), target)
    print(target)


if __name__ == "__main__":
    main()
