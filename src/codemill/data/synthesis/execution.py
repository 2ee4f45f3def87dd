"""Running a generated body: its outcomes become the tests of the task. Our own code only, in this process."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from codemill.data.synthesis.task import SyntheticTask, digest

_EXAMPLE_SHARE = 0.33
_MAX_OUTPUT = 120  # characters
_UNDEFINED = (ValueError, IndexError, ZeroDivisionError, OverflowError)


@dataclass(frozen=True)
class Function:
    """A function before it has tests: what it takes to run it and to state it."""

    name: str
    parameters: tuple[tuple[str, str], ...]  # name, type
    returns: str
    doc: str
    instruction: str
    body: str
    operations: tuple[str, ...]

    @property
    def header(self) -> str:
        """The line of the signature."""
        signature = ", ".join(f"{name}: {kind}" for name, kind in self.parameters)
        return f"def {self.name}({signature}) -> {self.returns}:\n"


def tested(function: Function, cases: Sequence[Sequence[object]], random: Random) -> SyntheticTask | None:
    """The task with tests from running the body, or None where the outputs say too little about it."""
    outcomes = _outcomes(_compiled(function.header + function.body, function.name), cases)
    outputs = set(map(repr, outcomes.values()))
    if len(outcomes) < 3 or len(outputs) < 2 or max(map(len, outputs)) > _MAX_OUTPUT:
        return None
    calls = {f"{function.name}({arguments})": repr(output) for arguments, output in outcomes.items()}
    example = ""
    if random.random() < _EXAMPLE_SHARE:
        call = next(iter(calls))
        example = f"\n\n    >>> {call}\n    {calls[call]}\n    "
    prompt = f'{function.header}    """{function.doc}{example}"""\n'
    key = digest(prompt + function.body)
    return SyntheticTask(
        task_id=f"{'+'.join(function.operations)}-{key:016x}",
        entry_point=function.name,
        prompt=prompt,
        solution=function.body,
        instruction=function.instruction,
        tests=tuple(f"assert {call} == {output}" for call, output in calls.items()),
        operations=function.operations,
    )


def is_redundant(function: Function, shorter_body: str, cases: Sequence[Sequence[object]]) -> bool:
    """Whether a body without one of the steps gives the same outcomes, so that tests could not tell them apart."""
    full = _outcomes(_compiled(function.header + function.body, function.name), cases)
    shorter = _outcomes(_compiled(function.header + shorter_body, function.name), cases)
    return all(shorter.get(arguments) == output for arguments, output in full.items())


def _compiled(source: str, name: str) -> Callable[..., object]:
    namespace: dict[str, Callable[..., object]] = {}
    exec(compile(source, name, "exec"), namespace)
    return namespace[name]


def _outcomes(function: Callable[..., object], cases: Sequence[Sequence[object]]) -> dict[str, object]:
    """Arguments as source -> output; arguments on which the function is not defined are left out."""
    outcomes: dict[str, object] = {}
    for case in cases:
        arguments = ", ".join(map(repr, case))
        try:
            outcomes[arguments] = function(*copy.deepcopy(case))
        except _UNDEFINED:
            continue
    return outcomes
