"""How fast training data is tokenised and packed, and how full the rows are, against TRL's packing of the same.

    python benchmarks/packing_speed.py [--tokenizer SPEC] [--output RESULTS.json]

Documents have random ids; their lengths are log-normal, cut at the context, as those of conversations are. TRL packs a
data set by `pack_dataset(strategy="bfd")`, which packs each thousand documents by themselves; "assign" is what it does
with all of them at once, to compare the algorithms. Rows of ours have all four arrays and are built in memory, 256 at a
time, or written to a file; TRL's table holds ids and labels. Conversations to tokenise hold the functions of this
interpreter's standard library. All times are wall-clock times of one process, the best of three.
"""

import argparse
import ast
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from codemill import __version__
from codemill.chat import Tokenizer
from codemill.data.best_fit import fill_bins
from codemill.data.conversations import ConversationData, load_documents
from codemill.data.corpus import stdlib_modules
from codemill.data.packed_documents import PackedDocuments
from codemill.data.packing import Document

CONTEXT = 4096
MEDIAN, SPREAD = 600, 1.0  # of the lengths' logarithms
WHOLE = 20_000
MANY = 1_000_000
REPEATS = 3


def draw_lengths(number: int) -> np.ndarray:
    drawn = np.random.default_rng(0).lognormal(np.log(MEDIAN), SPREAD, number)
    return np.clip(drawn, 2, CONTEXT).astype(np.int64)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return min(times), result


def assign() -> dict[str, Any]:
    """Which document goes into which row, nothing moved."""
    figures: dict[str, Any] = {}
    for number in (WHOLE, MANY):
        lengths = draw_lengths(number)
        taken, bins = seconds(lambda lengths=lengths: fill_bins(lengths, CONTEXT))
        figures[f"ours_{number}"] = row(number, taken, lengths, len(bins))
    lengths = draw_lengths(WHOLE)
    taken, rows = seconds(lambda: trl_rows(lengths))
    figures[f"trl_{WHOLE}"] = row(WHOLE, taken, lengths, rows)
    return figures


def trl_rows(lengths: np.ndarray) -> int:
    """Rows of TRL's algorithm over all documents at once; documents without content, so that nothing is moved."""
    import pyarrow
    from trl.data_utils import _pack_bfd

    offsets = pyarrow.array(np.cumsum([0, *lengths]), pyarrow.int64())
    empty = pyarrow.nulls(int(lengths.sum()), pyarrow.bool_())
    column = pyarrow.LargeListArray.from_arrays(offsets, empty)
    return len(_pack_bfd(pyarrow.table({"input_ids": column}), CONTEXT))


def whole() -> dict[str, Any]:
    """From documents to rows that can be trained on."""
    from datasets import Dataset, disable_caching, disable_progress_bars
    from trl import pack_dataset

    disable_caching()
    disable_progress_bars()
    lengths = draw_lengths(WHOLE)
    draw = np.random.default_rng(1)
    documents = [Document.of(draw.integers(0, 150_000, length), 1.0) for length in lengths]
    built, _ = seconds(lambda: build(documents))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        written, packed = seconds(lambda: PackedDocuments(documents, CONTEXT, 0).save(path))
        rows = len(packed)
        del packed
    table = Dataset.from_dict({"input_ids": [d.ids for d in documents], "labels": [d.ids for d in documents]})
    theirs, dataset = seconds(lambda: pack_dataset(table, CONTEXT, "bfd"))
    return {
        "ours_in_memory": row(WHOLE, built, lengths, rows),
        "ours_to_a_file": row(WHOLE, written, lengths, rows),
        "trl": row(WHOLE, theirs, lengths, len(dataset)),
    }


def build(documents: list[Document]) -> None:
    packed = PackedDocuments(documents, CONTEXT, 0)
    for start in range(0, len(packed), 256):
        packed.take(range(start, min(start + 256, len(packed))))


def row(number: int, taken: float, lengths: np.ndarray, rows: int) -> dict[str, Any]:
    return {
        "documents": number,
        "seconds": round(taken, 4),
        "documents_per_second": round(number / taken),
        "tokens_per_second": round(int(lengths.sum()) / taken),
        "rows": rows,
        "utilisation": round(int(lengths.sum()) / (rows * CONTEXT), 5),
    }


def tokenise(spec: str | None) -> dict[str, Any]:
    """From JSON lines to a cache on disk, and again with the cache there."""
    tokenizer = Tokenizer.load(spec)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"
        path.write_text("".join(f"{json.dumps(record)}\n" for record in conversations()), encoding="utf-8")
        settings = ConversationData((str(path),), cache=folder, overlong="truncate")
        start = time.perf_counter()
        documents = load_documents([path], tokenizer, settings)
        first = time.perf_counter() - start
        again, _ = seconds(lambda: load_documents([path], tokenizer, settings))
        size, tokens = path.stat().st_size, int(documents.documents.lengths.sum())
    return {
        "tokenizer": spec and Path(spec).name,
        "conversations": documents.documents.records,
        "megabytes": round(size / 1e6, 1),
        "tokens": tokens,
        "seconds": round(first, 2),
        "megabytes_per_second": round(size / 1e6 / first, 2),
        "tokens_per_second": round(tokens / first),
        "seconds_from_cache": round(again, 3),
    }


def conversations() -> list[dict[str, Any]]:
    records = []
    for module in stdlib_modules():
        for node in ast.walk(ast.parse(module.text)):
            if isinstance(node, ast.FunctionDef) and (docstring := ast.get_docstring(node)):
                code = ast.get_source_segment(module.text, node) or ""
                question = f"Write a function {node.name} for {module.name}: {docstring}"
                answer = f"```python\n{code}\n```"
                messages = [("system", "You write Python."), ("user", question), ("assistant", answer)]
                messages += [("user", "Explain it."), ("assistant", docstring)]
                records.append({"messages": [{"role": role, "content": content} for role, content in messages]})
    return records


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", help="a tokenizer to measure beside the embedded one")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    packages = ("numpy", "tokenizers", "trl", "datasets", "pyarrow")
    result = {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "kernel": platform.release()},
        "versions": {"codemill": __version__, "python": platform.python_version()}
        | {package: version(package) for package in packages},
        "context": CONTEXT,
        "assign": assign(),
        "whole": whole(),
        "tokenise": [tokenise(spec) for spec in dict.fromkeys((None, arguments.tokenizer))],
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
