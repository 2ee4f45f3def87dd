"""EvalPlus's comparison of a solution with the reference, as a program for the sandbox: standard library alone.

Its rules are those of `evalplus.eval` 0.3.1: outputs are compared with `==`; floating-point outputs, and all outputs of
a task with a tolerance, also with numpy's `allclose`; some tasks, which have several right outputs, in ways of their
own. Each input has its own time limit, the larger of one second and four times what the reference took; here it is CPU
time, which a busy machine does not use up. One rule is mended: that release does not count the inputs of HumanEval/32
as passed, so that no solution of it passes there.

The work directory holds task.pickle, program.py and, when a solution is judged, expected.pickle, which the run of the
reference left.
"""

import contextlib
import math
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

TIMED_OUT = 124  # exit status
_MIN_SECONDS, _REFERENCE_FACTOR = 1.0, 4.0
_RTOL = 1e-07
_FLOAT_ATOL = 1e-6

# Tasks of MBPP whose outputs are sets, or only have to be there or not.
_AS_SETS = {
    "similar_elements",
    "find_char_long",
    "common_in_nested_lists",
    "extract_singly",
    "larg_nnum",
    "intersection_array",
    "find_dissimilar",
    "Diff",
}
_NOT_NONE = {"check_str", "text_match_three", "text_starta_endb"}


@dataclass(frozen=True)
class Expected:
    """What the reference gave for an input, and the CPU seconds that it took."""

    output: Any
    seconds: float


class OutOfTime(BaseException):
    """Not an Exception: solutions catch those."""


def main() -> None:
    """Judge the program, or leave what it gives if nothing is expected yet."""
    with open("task.pickle", "rb") as file:
        task = pickle.load(file)
    with _silence():
        function = load("program.py", task["entry_point"])
    if os.path.exists("expected.pickle"):
        with open("expected.pickle", "rb") as file:
            expected = pickle.load(file)
        for part in ("base", "plus"):
            check(function, task, part, [Expected(*pair) for pair in expected[part]])
    else:
        recorded = {part: [record(function, task, args) for args in task[part]] for part in ("base", "plus")}
        with open("expected.pickle", "wb") as file:
            pickle.dump(recorded, file)


def load(path: str, name: str) -> Callable[..., Any]:
    """The function of that name, from a program that runs in an empty namespace."""
    with open(path, "rb") as file:
        source = file.read()
    namespace: dict[str, Any] = {}
    exec(compile(source, path, "exec", dont_inherit=True), namespace)
    function: Callable[..., Any] = namespace[name]
    return function


def record(function: Callable[..., Any], task: dict[str, Any], args: Any) -> tuple[Any, float]:
    """What the reference gives, and its CPU seconds."""
    start = time.process_time()
    with _silence():
        output = function(*args)
    seconds = time.process_time() - start
    is_mbpp = task["dataset"] == "mbpp"
    return (output is not None if is_mbpp and task["entry_point"] in _NOT_NONE else output), seconds


def check(function: Callable[..., Any], task: dict[str, Any], part: str, expected: list[Expected]) -> None:
    """Raise AssertionError at the first input of the part whose output differs, or whatever the function raises."""
    atol = task["atol"]
    for number, (args, wanted) in enumerate(zip(task[part], expected, strict=True)):
        limit = max(_MIN_SECONDS, _REFERENCE_FACTOR * wanted.seconds)
        coefficients = list(args[0]) if task["entry_point"] == "find_zero" else []  # the solution may change them
        try:
            with _silence(), time_limit(limit):
                output = function(*args)
        except OutOfTime:
            _give_up(f"{part} input {number}: no output after {limit:.1f} s of CPU time")
        if task["dataset"] == "humaneval" and task["entry_point"] == "find_zero":
            is_right = abs(polynomial(coefficients, output)) <= atol
        else:
            if atol == 0 and is_floats(wanted.output):
                atol = _FLOAT_ATOL  # from here on, as in EvalPlus
            is_right = agrees(task, args, output, wanted.output, atol)
        assert is_right, f"{part} input {number}: {shown(output)} instead of {shown(wanted.output)}"


def agrees(task: dict[str, Any], args: Any, output: Any, expected: Any, atol: float) -> bool:
    """Whether the output counts as the expected one."""
    is_right = output == expected
    if task["dataset"] == "mbpp":
        is_right = _mbpp_rule(task["entry_point"], args, output, expected, atol, is_right)
    if is_right or atol == 0:
        return bool(is_right)
    if type(output) is not type(expected):
        return False
    return is_close(output, expected, atol)


def _mbpp_rule(name: str, args: Any, output: Any, expected: Any, atol: float, is_equal: bool) -> bool:
    if name in _AS_SETS:
        return set(output) == set(expected)
    if name in _NOT_NONE:
        return bool(output == expected if isinstance(output, bool) else (output is not None) == expected)
    if name == "are_equivalent":
        return True
    if name == "sum_div":
        return bool(is_equal or output == 0)
    if name == "surface_Area":
        return bool(is_equal or abs(output - pyramid_surface(*args)) <= atol)
    if name == "digit_distance_nums":
        return bool(is_equal or output == digit_distance(*args))
    return is_equal


def is_floats(value: Any) -> bool:
    """A floating-point number, or a list or tuple of such."""
    if isinstance(value, list | tuple) and value:
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def is_close(output: Any, expected: Any, atol: float) -> bool:
    """numpy's `allclose` for numbers and nested lists or tuples of one shape. Raises TypeError for anything else."""
    if isinstance(expected, list | tuple) and isinstance(output, list | tuple):
        pairs = zip(output, expected, strict=False)
        return len(output) == len(expected) and all(is_close(one, other, atol) for one, other in pairs)
    if output == expected:
        return True
    difference = abs(output - expected)
    return bool(math.isfinite(difference) and difference <= atol + _RTOL * abs(expected))


def polynomial(coefficients: list[float], x: float) -> float:
    """Its value at x; the constant comes first."""
    return sum(coefficient * math.pow(x, power) for power, coefficient in enumerate(coefficients))


def pyramid_surface(edge: float, height: float) -> int:
    """A square pyramid's, `height` measured from its base."""
    slant = math.sqrt((edge / 2) ** 2 + height**2)
    return round(edge**2 + 2 * edge * slant)


def digit_distance(one: int, other: int) -> int:
    """The sum of the differences of the digits, the shorter number filled up with zeros."""
    width = max(len(str(one)), len(str(other)))
    digits = zip(str(one).zfill(width), str(other).zfill(width), strict=True)
    return sum(abs(int(a) - int(b)) for a, b in digits)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime, and again if it is caught, after so much CPU time."""

    def stop(*_: object) -> None:
        raise OutOfTime

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with (
        open(os.devnull, "w") as null,
        contextlib.redirect_stdout(null),
        contextlib.redirect_stderr(null),
    ):
        yield


def _give_up(why: str) -> None:
    print(why, file=sys.stderr, flush=True)
    os._exit(TIMED_OUT)


def shown(value: Any) -> str:
    """The start of a value's repr."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - a solution's own class, or a number with too many digits
        return f"a {type(value).__name__} ({error})"
    return text if len(text) <= 200 else f"{text[:200]}…"


if __name__ == "__main__":
    main()
