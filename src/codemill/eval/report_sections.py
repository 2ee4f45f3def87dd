"""The parts of a report that stand without a script: the figures, the verdicts and the configuration, as HTML.

Nothing of a model or a data file goes in but through `escaped`. Sizes are attributes: the page's policy admits no
style on an element.
"""

import html
from collections.abc import Iterable, Mapping
from typing import Any

from codemill.eval.compare import Comparison, format_p
from codemill.eval.results import RunResults
from codemill.eval.scores import LEVEL, Estimate, Interval

_KINDS = {"ok": "ok", "failed": "failed", "harness error": "error"}  # every other verdict is a limit that was met
_IN_BYTES = ("memory", "output", "disk")
_LISTED = 50  # task ids in a list


def escaped(text: str) -> str:
    """Escaped for HTML; what UTF-8 or HTML cannot hold is shown as an escape."""
    shown = "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in text)
    return html.escape(shown)


def summary(results: RunResults, notes: Iterable[str]) -> str:
    estimates = results.scores.pass_at
    first = estimates.get(1)
    headline = "<p>No sample counts: there is no score.</p>" if first is None else _headline(first)
    others = "".join(_figure(f"pass@{k}", estimate) for k, estimate in estimates.items() if k != 1)
    others += "".join(
        f'<tr><th scope="row">{escaped(name)}</th><td class="number">{value:.4g}</td><td></td><td></td></tr>'
        for name, value in results.summary.items()
    )
    figures = f'<table class="figures"><tbody>{others}</tbody></table>' if others else ""
    return (
        f'<section aria-label="Score">{headline}{figures}{_notes([*_too_few(estimates), *notes])}</section>'
        f'<div class="columns">{_verdicts(results)}{_configuration(results)}</div>{_excluded(results)}'
    )


def _headline(estimate: Estimate) -> str:
    facts = f"{LEVEL:.0%} interval {_range(estimate.interval)}, {_problems(estimate.problems)}"
    figure = f"<strong>{100 * estimate.value:.1f} %</strong><span>pass@1</span>"
    return (
        f'<p class="headline">{figure}<span>{facts}</span></p>'
        f"{_bar(estimate.value, estimate.interval, _scale('0', '25', '50', '75', '100 %'))}"
    )


def _figure(name: str, estimate: Estimate) -> str:
    return (
        f'<tr><th scope="row">{name}</th><td class="number">{100 * estimate.value:.1f} %</td>'
        f'<td class="number">{_range(estimate.interval)}</td><td>{_bar(estimate.value, estimate.interval)}</td></tr>'
    )


def _range(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"


def _too_few(estimates: Mapping[int, Estimate]) -> list[str]:
    return [
        f"pass@{k} leaves out {_problems(len(estimate.too_few))} with fewer than {k} samples: {_ids(estimate.too_few)}"
        for k, estimate in estimates.items()
        if estimate.too_few
    ]


def _bar(value: float, interval: Interval, scale: str = "") -> str:
    label = f"{100 * value:.1f} %, interval {_range(interval)}"
    fill = f'<rect class="fill" y="6" width="{100 * value:.3f}%" height="12" rx="3"/>'
    return _svg(label, f"{fill}{_whisker(interval)}{scale}")


def _whisker(interval: Interval, scale: float = 100.0, shift: float = 0.0) -> str:
    low, high = (f"{scale * end + shift:.3f}%" for end in (interval.low, interval.high))
    ends = "".join(f'<line x1="{x}" x2="{x}" y1="3" y2="21"/>' for x in (low, high))
    return f'{ends}<line x1="{low}" x2="{high}" y1="12" y2="12"/>'


def _svg(label: str, inside: str) -> str:
    track = '<rect class="track" y="6" width="100%" height="12" rx="3"/>'
    kind = "bar scaled" if "<text" in inside else "bar"
    return f'<svg class="{kind}" role="img" aria-label="{escaped(label)}">{track}{inside}</svg>'


def _scale(*marks: str) -> str:
    last = len(marks) - 1
    anchors = ["start", *["middle"] * (last - 1), "end"]
    return "".join(
        f'<text x="{100 * i / last:g}%" y="36" text-anchor="{anchors[i]}">{mark}</text>' for i, mark in enumerate(marks)
    )


def _verdicts(results: RunResults) -> str:
    counts = {verdict: count for verdict, count in results.scores.verdicts.items() if count}
    total = sum(counts.values())
    rows = ""
    for verdict, count in counts.items():
        kind, share = _KINDS.get(verdict, "limit"), count / total
        rect = f'<rect data-kind="{kind}" y="6" width="{100 * share:.3f}%" height="12" rx="3"/>'
        rows += (
            f'<tr><th scope="row"><span class="verdict" data-kind="{kind}">{verdict}</span></th>'
            f'<td class="number">{count:,}</td><td class="number">{100 * share:.1f} %</td>'
            f"<td>{_svg(f'{100 * share:.1f} % {verdict}', rect)}</td></tr>"
        )
    note = "" if "harness error" not in counts else _notes(["Harness errors say nothing about an answer: not counted."])
    table = f'<table class="figures"><tbody>{rows}</tbody></table>' if rows else "<p>No sample.</p>"
    return f'<section aria-labelledby="verdicts"><h2 id="verdicts">Samples by verdict</h2>{table}{note}</section>'


def _configuration(results: RunResults) -> str:
    entries = "".join(
        f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in _settings(results).items()
    )
    return f'<section aria-labelledby="settings"><h2 id="settings">Configuration</h2><dl>{entries}</dl></section>'


def _settings(results: RunResults) -> dict[str, str]:
    """What a reader needs to make the run again, without what was not set."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    seconds = f"{results.seconds:,.1f}" if results.seconds else None
    shown = {**vars(results.configuration), "data": results.data, "data_sha256": results.data_sha256}
    shown |= {"model_fingerprint": results.model_fingerprint, "versions": versions}
    shown |= {"started": results.started, "finished": results.finished, "seconds": seconds}
    more = shown.pop("more")
    texts = {name.replace("_", " "): _setting(value) for name, value in {**shown, **more}.items()}
    return {name: text for name, text in texts.items() if text}


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_amount(name, inner)}" for name, inner in value.items() if inner is not None)
    return "" if value is None else str(value)


def _amount(name: str, value: Any) -> str:
    is_bytes = name in _IN_BYTES and isinstance(value, int) and value >= 1 << 20
    return f"{value / (1 << 20):g} MiB" if is_bytes else str(value)


def _excluded(results: RunResults) -> str:
    excluded = list(results.scores.excluded.items())
    if not excluded:
        return ""
    items = "".join(f"<li>{escaped(task_id)}: {escaped(reason)}</li>" for task_id, reason in excluded[:_LISTED])
    more = f"<li>and {len(excluded) - _LISTED} more</li>" if len(excluded) > _LISTED else ""
    title = f"Excluded from the score: {_problems(len(excluded))}"
    return f'<section aria-label="Excluded"><h2>{title}</h2><ul class="plain">{items}{more}</ul></section>'


def difference(c: Comparison, notes: Iterable[str]) -> str:
    low, high = 100 * c.interval.low, 100 * c.interval.high
    facts = f"{LEVEL:.0%} interval {low:+.1f} to {high:+.1f}, p = {format_p(c.p_value)}, {_problems(c.problems)}"
    left, width = 50 + 50 * min(c.difference, 0.0), 50 * abs(c.difference)
    inside = f'<rect class="fill" x="{left:.3f}%" y="6" width="{width:.3f}%" height="12"/>'
    inside += f'<line class="zero" x1="50%" x2="50%" y1="0" y2="24"/>{_whisker(c.interval, 50.0, 50.0)}'
    headline = f'<p class="headline"><strong>{100 * c.difference:+.1f}</strong><span>points of pass@1</span>'
    return (
        f'<section aria-label="Difference">{headline}<span>{facts}</span></p>'
        f"{_svg(facts, inside + _scale('-100', '-50', '0', '+50', '+100'))}{_sides(c)}{_notes(notes)}</section>"
    )


def _sides(c: Comparison) -> str:
    rows = ""
    for name, value in (("pass@1 of A", c.a), ("pass@1 of B", c.b)):
        bar = _svg(f"{100 * value:.1f} %", f'<rect class="fill" y="6" width="{100 * value:.3f}%" height="12" rx="3"/>')
        rows += f'<tr><th scope="row">{name}</th><td class="number">{100 * value:.1f} %</td><td>{bar}</td></tr>'
    counts = {"gained by B": c.gained, "lost by B": c.lost, "scored in A only": c.only_a, "scored in B only": c.only_b}
    for name, found in counts.items():
        rows += f'<tr><th scope="row">{name}</th><td class="number">{len(found):,}</td><td></td></tr>'
    return f'<table class="figures"><tbody>{rows}</tbody></table>'


def configurations(results: tuple[RunResults, RunResults]) -> str:
    """What differs in the settings of two runs, and behind a disclosure what does not."""
    a, b = (_settings(run) for run in results)
    differing = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    rows = ""
    for name in differing:
        cells = "".join(f"<td>{escaped(settings.get(name, '–'))}</td>" for settings in (a, b))
        rows += f'<tr><th scope="row">{escaped(name)}</th>{cells}</tr>'
    head = '<tr><th></th><th scope="col">A</th><th scope="col">B</th></tr>'
    same = _entries({name: text for name, text in a.items() if name not in differing})
    return (
        '<section aria-labelledby="settings"><h2 id="settings">Configuration</h2>'
        f'<table class="settings"><thead>{head}</thead><tbody>{rows}</tbody></table>'
        f"<details><summary>The same in both</summary>{same}</details></section>"
    )


def _entries(settings: Mapping[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{escaped(name)}</dt><dd>{escaped(text)}</dd>' for name, text in settings.items())}</dl>"


def _notes(notes: Iterable[str]) -> str:
    return "".join(f'<p class="note">{escaped(note)}</p>' for note in notes)


def _ids(task_ids: Iterable[str]) -> str:
    shown = list(task_ids)
    return ", ".join(shown[:_LISTED]) + (f", and {len(shown) - _LISTED} more" if len(shown) > _LISTED else "")


def _problems(count: int) -> str:
    return f"{count:,} problem{'' if count == 1 else 's'}"
