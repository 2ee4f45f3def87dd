"""`codemill data clean`: training data without what benchmarks hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codemill.commands import options, print_json
from codemill.data.progress import bytes_progress

if TYPE_CHECKING:
    from codemill.data.clean import CleanSummary

EXAMPLES = """
codemill data clean train.jsonl --against humaneval --against mbpp
codemill data clean train.jsonl.gz --against humaneval=HumanEval.jsonl.gz --output clean.jsonl.gz
codemill data clean corpus/ more.jsonl --against multipl-e:rust --against cruxeval --output clean/ --json
"""
_TASKS = 5  # are named for each suite


def clean(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="JSON Lines or text files, .gz or not; or folders.")
    ],
    against: Annotated[
        list[str],
        typer.Option(metavar="SUITE[:PART][=PATH]", help="A benchmark, of `codemill eval list`; repeatable."),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Where the clean copy goes: a file for one input file, else a folder.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="What was removed; default: OUTPUT.removed.jsonl.")
    ] = None,
    ngram: Annotated[int, typer.Option(help="Words in a row that a document may not share with a problem.")] = 10,
    similarity: Annotated[
        float, typer.Option(help="Jaccard index from which on a document is a near-duplicate of a problem.")
    ] = 0.7,
    as_json: options.AsJson = False,
) -> None:
    """Find training documents that hold benchmark problems, and write the others."""
    from codemill.data.clean import clean as clean_files
    from codemill.data.clean_outputs import Destination
    from codemill.data.contamination import ContaminationIndex, Sensitivity
    from codemill.data.documents import find_files
    from codemill.eval.problem_texts import Against, benchmark_problems

    sensitivity = Sensitivity(ngram=ngram, similarity=similarity)
    files = find_files(inputs)
    destination = Destination(output, report)
    destination.targets(inputs, files)  # before the benchmarks are fetched
    problems = benchmark_problems([Against.parse(text) for text in against])
    with bytes_progress(sum(file.path.stat().st_size for file in files)) as advance:
        index = ContaminationIndex(problems, sensitivity)
        summary = clean_files(inputs, files, index, destination, advance)
    if as_json:
        print_json({"problems": len(problems), **summary.to_json()})
    else:
        print(_as_text(summary, len(problems)))


def _as_text(summary: "CleanSummary", problems: int) -> str:
    megabytes = summary.bytes / 1e6
    lines = [
        f"{summary.documents:,} documents ({megabytes:,.1f} MB) in {summary.files:,} files, against {problems:,} "
        f"problems: {megabytes / max(summary.seconds, 1e-9):.1f} MB/s",
        f"contaminated: {summary.removed:,}{_listed(summary.kinds)}",
    ]
    for suite, tasks in summary.tasks.items():
        named = ", ".join(f"{task_id} ({count})" for task_id, count in list(tasks.items())[:_TASKS])
        more = f", and {len(tasks) - _TASKS} more" if len(tasks) > _TASKS else ""
        lines.append(f"  {suite}: {sum(tasks.values()):,} with {len(tasks):,} of its problems: {named}{more}")
    if summary.malformed:
        lines.append(f"malformed, kept apart: {summary.malformed:,}")
        lines += [f"  {fault}" for fault in summary.faults]
    lines.append(f"clean: {summary.kept:,}")
    if summary.without_text:
        lines.append(f"  of these without any text to check: {summary.without_text:,}")
    lines += [f"written: {path}" for path in summary.outputs]
    return "\n".join(lines)


def _listed(kinds: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{count:,} by {kind}' for kind, count in kinds.items())})" if kinds else ""


VERB = clean
