"""What `codemill data clean` finds of planted copies of problems, what it flags by mistake, and how fast it reads.

    python benchmarks/contamination.py --humaneval HumanEval.jsonl.gz --mbpp mbpp.jsonl [--output RESULTS.json]

Planted are whole records (alone), and each problem's program as it is, reformatted, with its names changed, and with a
comment on every line, alone and among other functions of a file. The other functions, and the files that should not be
flagged, are this interpreter's standard library. Times are CPU times of one process.
"""

import argparse
import ast
import json
import os
import platform
import random
import sysconfig
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from codemill import __version__
from codemill.data.contamination import BenchmarkProblem, ContaminationIndex
from codemill.data.synthesis import generate_tasks
from codemill.eval.problem_texts import PROGRAM, Against, benchmark_problems

SUITES = ("humaneval", "mbpp")
SYNTHETIC = 3000
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Renamer(ast.NodeTransformer):
    """Gives every function, argument and variable that a program defines another name."""

    def __init__(self, tree: ast.AST) -> None:
        self.names: dict[str, str] = {}
        for node in ast.walk(tree):
            name = defined_name(node)
            if name is not None:
                self.names.setdefault(name, f"name_{len(self.names)}")

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.names.get(node.id, node.id), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        self.generic_visit(node)
        node.arg = self.names.get(node.arg, node.arg)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.name = self.names[node.name]
        return node


def defined_name(node: ast.AST) -> str | None:
    if isinstance(node, ast.FunctionDef):
        return node.name
    if isinstance(node, ast.arg):
        return node.arg
    return node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None


def without_docstrings(program: str) -> ast.Module:
    tree = ast.parse(program)
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def reformatted(program: str) -> str:
    """Another layout, without docstrings and comments."""
    return ast.unparse(without_docstrings(program))


def renamed(program: str) -> str:
    tree = without_docstrings(program)
    return ast.unparse(Renamer(tree).visit(tree))


def commented(program: str) -> str:
    lines = enumerate(reformatted(program).splitlines())
    return "\n".join(f"{line}  # step {number}" for number, line in lines)


VARIANTS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "reformatted, without docstring": reformatted,
    "the same, names changed": renamed,
    "reformatted, a comment on every line": commented,
}


def library_files() -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    texts = []
    for path in sorted(root.rglob("*.py")):
        if "site-packages" not in path.parts and "dist-packages" not in path.parts:
            try:
                texts.append(path.read_text(encoding="utf-8"))
            except UnicodeDecodeError:
                continue
    return texts


def recall(index: ContaminationIndex, problems: list[BenchmarkProblem], library: list[str]) -> list[dict[str, Any]]:
    draw = random.Random(0)
    surroundings = [text[:6000] for text in draw.sample(library, 300) if len(text) > 6000 and index.find(text) is None]
    rows = []
    for suite in SUITES:
        of_suite = [problem for problem in problems if problem.suite == suite]
        whole = found_in(index, ["\n\n".join(problem.parts.values()) for problem in of_suite])
        rows.append({"suite": suite, "planted": "whole record", "planted_number": len(of_suite), "alone": whole})
        programs = [problem.parts[PROGRAM] for problem in of_suite if parses(problem.parts.get(PROGRAM, "("))]
        for name, change in VARIANTS.items():
            texts = [change(program) for program in programs]
            among = [f"{draw.choice(surroundings)}\n\n\n{text}\n\n\n{draw.choice(surroundings)}" for text in texts]
            found = {"alone": found_in(index, texts), "in_a_file": found_in(index, among)}
            rows.append({"suite": suite, "planted": name, "planted_number": len(texts), **found})
    return rows


def found_in(index: ContaminationIndex, texts: list[str]) -> int:
    return sum(index.find(text) is not None for text in texts)


def parses(program: str) -> bool:
    try:
        ast.parse(program)
    except SyntaxError:
        return False
    return True


def mistakes(index: ContaminationIndex, library: list[str]) -> dict[str, Any]:
    start = time.process_time()
    matches = [match for text in library if (match := index.find(text)) is not None]
    seconds = time.process_time() - start
    megabytes = sum(len(text.encode()) for text in library) / 1e6
    tasks = [task for task, _ in zip(generate_tasks(0), range(SYNTHETIC), strict=False)]
    synthetic = [index.find(f"{task.instruction}\n\n{task.prompt}{task.solution}") for task in tasks]
    return {
        "library_files": len(library),
        "library_megabytes": round(megabytes, 1),
        "megabytes_per_cpu_second": round(megabytes / seconds, 2),
        "library_flagged": [[m.suite, m.task_id, m.part, m.kind, m.evidence] for m in matches],
        "synthetic_tasks": SYNTHETIC,
        "synthetic_flagged": [[m.suite, m.task_id, m.kind, m.evidence] for m in synthetic if m is not None],
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--humaneval", type=Path, required=True)
    parser.add_argument("--mbpp", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    chosen = [Against("humaneval", data=arguments.humaneval), Against("mbpp", data=arguments.mbpp)]
    problems, library = benchmark_problems(chosen), library_files()
    start = time.process_time()
    index = ContaminationIndex(problems)
    build = time.process_time() - start
    result = {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "kernel": platform.release()},
        "versions": {"codemill": __version__, "python": platform.python_version(), "numpy": version("numpy")},
        "problems": len(problems),
        "index_cpu_seconds": round(build, 2),
        "recall": recall(index, problems, library),
        **mistakes(index, library),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
