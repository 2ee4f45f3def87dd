"""One operation of the task grammar: its types, phrasings and code forms, all as templates.

Templates are plain strings in which `{x}` stands for the operand and `{k}`, `{letter}`, ... for slots (`SLOTS`).
They are filled by literal replacement, so that the braces of dictionary displays need no escaping.
"""

import ast
from dataclasses import dataclass
from functools import cache

INTS, WORDS, TEXT, INT, BOOL, FLOAT = "list[int]", "list[str]", "str", "int", "bool", "float"
SCORES = "dict[str, int]"


@dataclass(frozen=True)
class Slot:
    """A constant inside an operation, or a further parameter of the function (always so without `choices`)."""

    type: str
    choices: tuple[int | str, ...]
    parameter_names: tuple[str, ...]


_LETTERS = tuple("aeiorstlnp")
SLOTS: dict[str, Slot] = {
    "k": Slot(INT, tuple(range(1, 11)), ("k", "limit", "amount")),
    "d": Slot(INT, (2, 3, 4, 5, 6, 7), ("k", "divisor")),
    "c": Slot(INT, (1, 2, 3, 4), ("k", "count")),
    "low": Slot(INT, (0, 1, 2, 3, 5), ("low",)),
    "high": Slot(INT, (8, 10, 12, 15, 20), ("high",)),
    "letter": Slot(TEXT, _LETTERS, ("letter", "char")),
    "mark": Slot(TEXT, tuple("-_*#.xz"), ("mark",)),
    "sep": Slot(TEXT, (", ", "-", " ", "_", "/", ":"), ("sep", "separator")),
    "other": Slot(INTS, (), ("other", "others")),
    "extra": Slot(WORDS, (), ("other", "extra")),
    "update": Slot(SCORES, (), ("other", "extra")),
}


@dataclass(frozen=True)
class Operation:
    """A typed step of a task.

    `phrases` are verb phrases ("keep the even numbers") for a step, noun phrases ("the sum of the numbers") for a
    value. `noun` is the nominal form, with `{x}` for the operand's; without `{x}` it can only describe the input.
    `codes` are expressions; `loop` is a statement form that leaves its outcome in `result`. `small` marks operations
    on an int that must be small and non-negative, hence the function's own argument.
    """

    name: str
    takes: str
    gives: str
    codes: tuple[str, ...]
    phrases: tuple[str, ...]
    is_value: bool
    noun: str = ""
    loop: str = ""
    small: bool = False

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the slots in this operation's code."""
        return slots_of((self.codes or (self.loop,))[0])


@cache
def slots_of(template: str) -> tuple[str, ...]:
    """Names of the slots that occur in a template."""
    return tuple(name for name in SLOTS if "{" + name + "}" in template)


def step(
    name: str,
    types: tuple[str, str],
    codes: str | tuple[str, ...],
    *phrases: str,
    noun: str = "",
    loop: str = "",
    small: bool = False,
) -> Operation:
    """An operation that is spoken of as an action: 'square each number'."""
    forms = (codes,) if isinstance(codes, str) else codes
    return Operation(name, *types, forms, phrases, False, noun, loop, small)


def value(
    name: str,
    types: tuple[str, str],
    codes: str | tuple[str, ...],
    *phrases: str,
    noun: str = "",
    loop: str = "",
    small: bool = False,
) -> Operation:
    """An operation that is spoken of by what it gives: 'the sum of the numbers'."""
    forms = (codes,) if isinstance(codes, str) else codes
    return Operation(name, *types, forms, phrases, True, noun, loop, small)


def fill(template: str, values: dict[str, str]) -> str:
    """The template with every `{name}` of `values` replaced."""
    for name, text in values.items():
        template = template.replace("{" + name + "}", text)
    return template


_PRIMARY = (ast.Call, ast.Name, ast.Subscript, ast.ListComp, ast.DictComp, ast.List, ast.Dict, ast.Constant)


@cache
def needs_parentheses(template: str) -> bool:
    """Whether the expression must be parenthesised to stand as the operand of another one."""
    names = dict.fromkeys(("x", *SLOTS), "x")
    return not isinstance(ast.parse(fill(template, names), mode="eval").body, _PRIMARY)
