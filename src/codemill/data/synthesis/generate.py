"""The endless stream of verified tasks: sample operations, phrase them, write them, run them."""

import builtins
from collections.abc import Iterator, Sequence
from random import Random

from codemill.data.synthesis import inputs, phrasing, writing
from codemill.data.synthesis.classics import CLASSICS, Classic
from codemill.data.synthesis.execution import Function, is_redundant, tested
from codemill.data.synthesis.list_operations import INTEGER_STEPS, INTEGER_VALUES, WORD_OPERATIONS
from codemill.data.synthesis.operation import INT, INTS, SCORES, SLOTS, TEXT, WORDS, Operation, fill
from codemill.data.synthesis.scalar_operations import DICT_OPERATIONS, INTEGER_OPERATIONS, TEXT_OPERATIONS
from codemill.data.synthesis.task import SyntheticTask, digest, is_held_out

OPERATIONS = INTEGER_STEPS + INTEGER_VALUES + WORD_OPERATIONS + TEXT_OPERATIONS + INTEGER_OPERATIONS + DICT_OPERATIONS
_FOLLOWERS = {
    kind: tuple(op for op in OPERATIONS if op.takes == kind and not op.small)
    for kind in (INTS, WORDS, TEXT, INT, SCORES)
}
_PARAMETERS = {
    INTS: ("numbers", "values", "nums", "xs", "items"),
    WORDS: ("words", "names", "strings"),
    TEXT: ("text", "s", "string", "sentence"),
    INT: ("n", "number", "num"),
    SCORES: ("scores", "counts", "prices", "d"),
}
_NAMES = (
    *("solve", "transform", "process", "compute", "run", "calculate", "convert", "apply", "f", "func"),
    *("solution", "handle", "evaluate", "answer", "helper", "task"),
)  # fmt: skip
_CLASSIC_SHARE, _DERIVED_NAME_SHARE, _PARAMETER_SHARE = 0.1, 0.4, 0.12
_LENGTH_WEIGHTS = (15, 45, 40)  # one, two, three operations, before redundant chains are dropped
_MAX_NAME = 45  # characters


def generate_tasks(seed: int, held_out: bool = False) -> Iterator[SyntheticTask]:
    """Distinct tasks without end, the same for the same seed.

    Combinations of operations that are held out occur only with `held_out`, and then nothing else does.
    """
    random = Random(seed)
    seen: set[int] = set()
    while True:
        if not held_out and random.random() < _CLASSIC_SHARE:
            task = _classic_task(random.choice(CLASSICS), random)
        else:
            task = _composed_task(_sample_operations(random, held_out), random)
        if task is None or (key := digest(task.prompt + task.solution)) in seen:
            continue
        seen.add(key)
        yield task


def _sample_operations(random: Random, held_out: bool) -> tuple[Operation, ...]:
    """A chain of one to three operations whose types fit, from the wanted side of the split."""
    (length,) = random.choices((1, 2, 3), _LENGTH_WEIGHTS)
    length = max(length, 2) if held_out else length
    while True:
        chain = [random.choice(OPERATIONS)]
        while len(chain) < length and chain[-1].gives in _FOLLOWERS:
            chain.append(random.choice(_FOLLOWERS[chain[-1].gives]))
        names = tuple(operation.name for operation in chain)
        if len(chain) == length and is_held_out(names) == held_out and _is_sensible(chain):
            return tuple(chain)


def _is_sensible(chain: Sequence[Operation]) -> bool:
    """Whether no operation occurs twice and at most one reads a second collection."""
    collections = [slot for operation in chain for slot in operation.slots if not SLOTS[slot].choices]
    return len(set(chain)) == len(chain) and len(collections) < 2


def _composed_task(operations: Sequence[Operation], random: Random) -> SyntheticTask | None:
    takes = operations[0].takes
    parameters = [(random.choice(_PARAMETERS[takes]), takes)]
    said: list[phrasing.Said] = []
    bound: list[writing.Bound] = []
    for operation in operations:
        code, words = _bind(operation, parameters, random)
        said.append(phrasing.Said(operation, words))
        bound.append(writing.Bound(operation, code))
    name = _name(operations, random)
    call = _call(name, parameters)
    clauses = phrasing.describe(said, random)
    function = Function(
        name=name,
        parameters=tuple(parameters),
        returns=operations[-1].gives,
        doc=phrasing.docstring(clauses, takes, random),
        instruction=phrasing.request(call, clauses, random),
        body=writing.write_body(bound, parameters[0][0], random),
        operations=tuple(operation.name for operation in operations),
    )
    cases = [_arguments(parameters, operations[0].small, position, random) for position in range(inputs.ROUNDS)]
    for omitted in _omissions(bound):
        if is_redundant(function, writing.write_body(omitted, parameters[0][0], random), cases):
            return None
    return tested(function, cases, random)


def _omissions(steps: list[writing.Bound]) -> list[list[writing.Bound]]:
    """The composition without each step in turn, where the types still fit."""
    return [
        steps[:position] + steps[position + 1 :]
        for position, bound in enumerate(steps)
        if len(steps) > 1 and bound.operation.takes == bound.operation.gives
    ]


def _arguments(
    parameters: Sequence[tuple[str, str]], small: bool, position: int, random: Random
) -> list[inputs.Argument]:
    first = inputs.argument(parameters[0][1], position, small, random)
    return [first, *(inputs.further_argument(kind, position, random) for _, kind in parameters[1:])]


def _bind(
    operation: Operation, parameters: list[tuple[str, str]], random: Random
) -> tuple[dict[str, str], dict[str, str]]:
    """Values for the slots, as code and as words; a slot that becomes a parameter is added to `parameters`."""
    code: dict[str, str] = {}
    words: dict[str, str] = {}
    as_parameter = len(operation.slots) == 1 and len(parameters) == 1 and random.random() < _PARAMETER_SHARE
    for name in operation.slots:
        slot = SLOTS[name]
        if as_parameter or not slot.choices:
            taken = {parameter for parameter, _ in parameters}
            parameter = random.choice([name for name in slot.parameter_names if name not in taken])
            parameters.append((parameter, slot.type))
            code[name], words[name] = parameter, f"`{parameter}`"
        else:
            code[name] = words[name] = _literal(random.choice(slot.choices))
    return code, words


def _literal(constant: int | str) -> str:
    return str(constant) if isinstance(constant, int) else f'"{constant}"'


def _name(operations: Sequence[Operation], random: Random) -> str:
    name = random.choice(("_and_", "_then_", "_")).join(operation.name for operation in operations)
    if hasattr(builtins, name):
        name = f"get_{name}"
    derived = random.random() < _DERIVED_NAME_SHARE and len(name) <= _MAX_NAME
    return name if derived else random.choice(_NAMES)


def _call(name: str, parameters: Sequence[tuple[str, str]]) -> str:
    return f"{name}({', '.join(parameter for parameter, _ in parameters)})"


def _classic_task(classic: Classic, random: Random) -> SyntheticTask | None:
    names = random.choice(classic.parameter_names)
    fillings = {str(position): name for position, name in enumerate(names)}
    name = random.choice(classic.names)
    parameters = tuple(zip(names, classic.types, strict=True))
    call = _call(name, parameters)
    doc = fill(random.choice(classic.docs), fillings)
    goal = fill(random.choice(classic.goals), fillings)
    function = Function(
        name=name,
        parameters=parameters,
        returns=classic.returns,
        doc=f"{phrasing.capital(doc)}.",
        instruction=random.choice(
            (
                f"Write a Python function `{call}` that {phrasing.third_person(doc)}.",
                f"Write a function `{call}` to {goal}.",
                f"Write a Python function `{call}` to {goal}.",
                f"{phrasing.capital(goal)} in a function `{call}`.",
            )
        ),
        body="".join(f"    {line}\n" for line in fill(random.choice(classic.bodies), fillings).split("\n")),
        operations=(classic.name,),
    )
    cases = random.sample(classic.cases, min(len(classic.cases), inputs.ROUNDS))
    return tested(function, cases, random)
