"""The program that judges one CRUXEval prediction, run in the sandbox. Standard library only: its text is sent there.

A prediction is evaluated with a few builtins, without the tested function and without names or attributes that begin
with an underscore: it can say a value, but not compute one with the function, nor pass by what it does to `==`.
"""

import ast
import builtins
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

_BUILTINS = (
    "abs all any ascii bin bool bytearray bytes chr complex dict divmod enumerate filter float format frozenset hash"
    " hex int isinstance iter len list map max min next oct ord pow print range repr reversed round set slice sorted"
    " str sum tuple zip"
)
_SAFE = {name: getattr(builtins, name) for name in _BUILTINS.split()}
_VALUES: Mapping[str, Any] = {  # what a printed value may be written with
    **{kind.__name__: kind for kind in (Counter, OrderedDict, defaultdict, deque, Decimal, Fraction)},
    "inf": math.inf,
    "nan": math.nan,
}
_FRAME_ATTRIBUTES = ("_", "gi_", "ag_", "cr_", "f_", "tb_", "co_")


def check_output(code: str, given: str, answer: str) -> None:
    """Exit with a message unless the answer is an expression for what `f(given)` returns."""
    predicted = _evaluate(_parsed(answer), _VALUES)
    namespace = _run(code)
    actual = eval(f"f({given})", namespace)
    if not actual == predicted:
        raise SystemExit(f"f({given[:200]}) is {_shown(actual)}, not {_shown(predicted)}")


def check_input(code: str, output: str, answer: str) -> None:
    """Exit with a message unless the answer is a call of `f` that returns `output`."""
    call = _parsed(answer)
    if not isinstance(call.body, ast.Call) or not isinstance(call.body.func, ast.Name) or call.body.func.id != "f":
        raise SystemExit("the answer is no call of f")
    call.body.func.id = "arguments_of"
    namespace = _run(code)
    names = {name: value for name, value in namespace.items() if name not in ("f", "__builtins__")}
    args, keywords = _evaluate(call, {**names, "arguments_of": lambda *args, **keywords: (args, keywords)})
    actual, wanted = namespace["f"](*args, **keywords), eval(output, namespace)
    if not wanted == actual:
        raise SystemExit(f"it returns {_shown(actual)}, not {_shown(wanted)}")


def _run(code: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, "code.py", "exec"), namespace)
    return namespace


def _parsed(answer: str) -> ast.Expression:
    try:
        return ast.parse(answer.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        raise SystemExit(f"the answer is no expression: {error}") from None


def _evaluate(tree: ast.Expression, names: Mapping[str, Any]) -> Any:
    for node in ast.walk(tree):
        hidden = isinstance(node, ast.Attribute) and node.attr.startswith(_FRAME_ATTRIBUTES)
        if hidden or (isinstance(node, ast.Name) and node.id.startswith("__")):
            raise SystemExit("the answer uses names that are not for it")
    return eval(compile(tree, "answer", "eval"), {**names, "__builtins__": _SAFE})


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"
