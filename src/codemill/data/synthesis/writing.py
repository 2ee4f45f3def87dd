"""Python for compositions: the body of a function from its operations in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from codemill.data.synthesis.operation import (
    INT,
    INTS,
    SCORES,
    TEXT,
    WORDS,
    Operation,
    fill,
    needs_parentheses,
)

_VARIABLE = {INTS: "numbers", WORDS: "words", TEXT: "text", INT: "number", SCORES: "counts"}
_MAX_INLINE = 90  # characters
_INLINE_SHARE, _LOOP_SHARE = 0.25, 0.15


@dataclass(frozen=True)
class Bound:
    """An operation with its slots as code: literals or parameter names."""

    operation: Operation
    code: dict[str, str]


def write_body(steps: Sequence[Bound], parameter: str, random: Random) -> str:
    """The indented body, one assignment a step or a single expression."""
    inline = _inline(steps, parameter, random) if random.random() < _INLINE_SHARE else ""
    lines = [f"return {inline}"] if inline else _stepwise(steps, parameter, random)
    return "".join(f"    {line}\n" for line in lines)


def _stepwise(steps: Sequence[Bound], parameter: str, random: Random) -> list[str]:
    lines: list[str] = []
    operand = parameter
    looping = _looping_step(steps, random)
    for position, bound in enumerate(steps):
        operation, last = bound.operation, position == len(steps) - 1
        if position == looping or not operation.codes:
            lines += fill(operation.loop, {**bound.code, "x": operand}).split("\n")
            operand = "result"
            if last:
                lines.append("return result")
            continue
        expression = fill(random.choice(operation.codes), {**bound.code, "x": operand})
        if last:
            lines.append(f"return {expression}")
        else:
            operand = operand if operation.takes == operation.gives else _VARIABLE[operation.gives]
            lines.append(f"{operand} = {expression}")
    return lines


def _looping_step(steps: Sequence[Bound], random: Random) -> int | None:
    """The one step written as a loop: a second loop would read the `result` that it builds."""
    loops = [position for position, bound in enumerate(steps) if bound.operation.loop]
    forced = any(not bound.operation.codes for bound in steps)
    if forced or not loops or random.random() >= _LOOP_SHARE:
        return None
    return random.choice(loops)


def _inline(steps: Sequence[Bound], parameter: str, random: Random) -> str:
    """The composition as one expression, or nothing where that would repeat an operand, need a loop or be long."""
    expression, wrap = parameter, False
    for bound in steps:
        if not bound.operation.codes:
            return ""
        template = random.choice(bound.operation.codes)
        if template.count("{x}") > 1 and expression != parameter:
            return ""
        expression = fill(template, {**bound.code, "x": f"({expression})" if wrap else expression})
        wrap = needs_parentheses(template)
    return expression if len(expression) <= _MAX_INLINE else ""
