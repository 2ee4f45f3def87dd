"""The program that runs a LiveCodeBench solution on one test, in the sandbox. Standard library only: its text is sent
there. What the test expects is not: outputs are compared outside."""

import contextlib
import importlib
import json
import sys
from typing import Any

# Solutions count on the names that LeetCode and the authors' own runner put before them.
MODULES = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
).split()
SOLUTION, ARGUMENTS, RESULT = "solution.py", "arguments.jsonl", "result.json"


def run_program() -> None:
    """The solution as a program that reads its standard input. Leaving early is no fault in it."""
    with contextlib.suppress(SystemExit):
        _run()


def run_function(name: str) -> None:
    """Call the method of `Solution`, or the function, with the arguments, and write what it returns."""
    with open(ARGUMENTS, encoding="utf-8") as file:
        arguments = [json.loads(line) for line in file if line.strip()]
    namespace = _run()
    owner = namespace.get("Solution")
    function = namespace[name] if owner is None else getattr(owner(), name)
    result = function(*arguments)
    with open(RESULT, "w", encoding="utf-8") as file:
        json.dump(result, file, default=_plain)


def _run() -> dict[str, Any]:
    with open(SOLUTION, "rb") as file:
        code = compile(file.read(), SOLUTION, "exec", dont_inherit=True)
    sys.setrecursionlimit(50_000)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for module in (*MODULES, "builtins", "typing"):
        exec(f"from {module} import *", namespace)
    namespace.update({module: importlib.import_module(module) for module in MODULES})
    exec(code, namespace)
    return namespace


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"the result holds a {type(value).__name__}")
