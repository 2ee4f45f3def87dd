"""A synthetic programming task, its split, and the check of a solution."""

import hashlib
from dataclasses import dataclass

_FAILURES = (
    AssertionError,
    ArithmeticError,
    AttributeError,
    LookupError,
    NameError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class SyntheticTask:
    """A function to write: `prompt + solution` is the whole function, `tests` are assertions about it.

    `prompt` ends after the docstring, `solution` is the indented body, `instruction` is the request in chat form and
    `operations` names what was composed, in order.
    """

    task_id: str
    entry_point: str
    prompt: str
    solution: str
    instruction: str
    tests: tuple[str, ...]
    operations: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        """Whether the combination of operations is kept away from training."""
        return is_held_out(self.operations)


def is_held_out(operations: tuple[str, ...]) -> bool:
    """A fixed tenth of the combinations of two or more operations, whatever the seed."""
    return len(operations) > 1 and digest("+".join(operations)) % 10 == 0


def digest(text: str) -> int:
    """A 64-bit hash that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def verify(task: SyntheticTask, source: str) -> bool:
    """Whether `source` (whole functions) passes the task's tests.

    Runs in this process without limits: for trusted code only, such as the task's own solution. Code that a model
    wrote belongs in `codemill.sandbox`.
    """
    namespace: dict[str, object] = {}
    try:
        exec(compile("\n".join((source, *task.tests)), task.task_id, "exec"), namespace)
    except _FAILURES:
        return False
    return True
