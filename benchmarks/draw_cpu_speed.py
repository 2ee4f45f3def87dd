"""Draws what `cpu_speed.py` measured: how many times each peer's speed ours is, and the share of the machine's limit.

    python benchmarks/draw_cpu_speed.py [RESULTS.json] [PICTURE.svg]

By default benchmarks/results/cpu_speed.json and docs/cpu_speed.svg. The picture has no background of its own; where it
is looked at in the dark, an SVG turns its dark ink light. Needs matplotlib.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RESULTS, PICTURE = FOLDER / "results" / "cpu_speed.json", FOLDER.parent / "docs" / "cpu_speed.svg"
PARTS = {
    "int4": "0.6B, 4 bits",
    "int8": "0.6B, 8 bits",
    "bf16": "0.6B, bf16",
    "moe-8-layers": "30B-A3B, 8 layers, 4 bits",
    "moe": "30B-A3B, 4 bits",
    "hybrid": "Coder-Next, 8 layers, 4 bits",
}
FIGURES = ("decode after 0", "decode after 512", "decode after 512, batch 8", "prefill 512", "prefill 2048")
OURS, COLOURS = "Codemill", {"llama.cpp": "#d9772f", "openvino": "#8f6fd1", "transformers": "#8a8a8a"}
OUR_COLOUR, INK, LIGHT_INK = "#2f81c4", "#24292f", "#d0d7de"
ROW_HEIGHT = 0.27  # inches
DARK = f"""<style>@media (prefers-color-scheme: dark) {{
[style*="fill: {INK}"] {{ fill: {LIGHT_INK} !important; }}
[style*="stroke: {INK}"] {{ stroke: {LIGHT_INK} !important; }}
}}</style>"""


@dataclass(frozen=True)
class Row:
    """A line of the picture: a heading, or one figure of a part."""

    title: str
    figure: dict[str, Any] | None = None

    @property
    def peers(self) -> dict[str, Any]:
        return {} if self.figure is None else self.figure.get("peers", {})


def rows(parts: dict[str, Any]) -> Iterator[Row]:
    """The figures that were measured, under the part's name."""
    for key, title in PARTS.items():
        found = {figure["name"]: figure for figure in parts.get(key, {}).get("figures", ())}
        shown = [Row(name, found[name]) for name in FIGURES if name in found]
        if shown:
            yield from (Row(title), *shown)


def draw_ratios(axes: Any, shown: list[Row]) -> None:
    """Bars, one for each peer."""
    names = [name for name in COLOURS if any(name in row.peers for row in shown)]
    height = 0.8 / max(len(names), 1)
    for y, row in enumerate(shown):
        for number, name in enumerate(each for each in names if each in row.peers):
            place = y - 0.4 + (number + 0.5) * height if len(row.peers) > 1 else y
            bar = axes.barh(place, row.peers[name]["ratio"], 0.9 * height, color=COLOURS[name], label=name)
            axes.bar_label(bar, fmt="%.2f", fontsize=7, padding=2, color=INK)
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.set_title("times as fast as the peer", fontsize=9, color=INK)


def draw_shares(axes: Any, shown: list[Row]) -> None:
    """Bars for ours, dots for peers, in per cent."""
    for y, row in enumerate(shown):
        if row.figure is None or not row.figure["roofline"]:
            continue
        bar = axes.barh(y, 100 * row.figure["fraction"], 0.5, color=OUR_COLOUR, label=OURS)
        axes.bar_label(bar, fmt="%.0f", fontsize=7, padding=2, color=INK)
        for name, peer in row.peers.items():
            share = 100 * peer["value"] / row.figure["roofline"]
            axes.plot(
                share,
                y,
                "o",
                markersize=5,
                markeredgecolor="white",
                markeredgewidth=0.6,
                color=COLOURS[name],
                label=name,
            )
    axes.set_xlim(0, 105)
    axes.axvline(100, color=INK, linewidth=0.8, linestyle=":")
    axes.set_title("% of what the machine allows", fontsize=9, color=INK)


def tidy(axes: Any, shown: list[Row]) -> None:
    axes.set_yticks(range(len(shown)), [row.title for row in shown], fontsize=8, color=INK)
    for row, label in zip(shown, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if row.figure is None else "normal")
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=7, colors=INK)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)


def draw(results: dict[str, Any], target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "codemill"  # the same figures give the same file
    from matplotlib import pyplot

    shown = list(rows(results["parts"]))
    if not shown:
        raise SystemExit("there are no speeds in these results: run benchmarks/cpu_speed.py with --parts int4")
    size = (8.5, 1.1 + ROW_HEIGHT * len(shown))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=size, sharey=True, width_ratios=(1.2, 1))
    draw_ratios(left, shown)
    draw_shares(right, shown)
    tidy(left, shown)
    right.tick_params(axis="x", labelsize=7, colors=INK)
    right.spines[["top", "right", "left"]].set_visible(False)
    right.spines["bottom"].set_color(INK)
    right.tick_params(axis="y", length=0)
    labels = {
        label: each for axes in (right, left) for each, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        labels.values(), labels.keys(), loc="lower center", ncols=4, fontsize=8, frameon=False, labelcolor=INK
    )
    figure.tight_layout(rect=(0, 0.4 / size[1], 1, 1))
    figure.savefig(target, transparent=True, metadata={"Date": None} if target.suffix == ".svg" else None)
    if target.suffix == ".svg":
        turn_light_in_the_dark(target)


def turn_light_in_the_dark(picture: Path) -> None:
    text = picture.read_text()
    end = text.index(">", text.index("<svg")) + 1
    picture.write_text(text[:end] + "\n" + DARK + text[end:])


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else PICTURE
    if not source.exists():
        raise SystemExit(f"{source} does not exist: run benchmarks/cpu_speed.py --output {source} first")
    draw(json.loads(source.read_text()), target)
    print(target)


if __name__ == "__main__":
    main()
