"""English for compositions: the docstring of a task and its request in chat form."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from codemill.data.synthesis.operation import INT, INTS, SCORES, TEXT, WORDS, Operation, fill

_INPUT_NOUN = {
    INTS: "the numbers",
    WORDS: "the words",
    TEXT: "the text",
    INT: "the number",
    SCORES: "the dictionary",
}
_INPUT_GIVEN = {
    INTS: "a list of numbers",
    WORDS: "a list of words",
    TEXT: "a text",
    INT: "a number",
    SCORES: "a dictionary of numbers",
}


@dataclass(frozen=True)
class Said:
    """An operation with its slots as they are spoken of: constants as literals, parameters in backticks."""

    operation: Operation
    words: dict[str, str]


def describe(steps: Sequence[Said], random: Random) -> tuple[str, ...]:
    """Verb phrases for the composition in order, or one nominal phrase where the composition has such a form."""
    nominal = _nominal(steps)
    if nominal and random.random() < 0.25:
        return (f"return {nominal}",)
    return tuple(_clause(said, said is steps[-1], random) for said in steps)


def docstring(clauses: Sequence[str], takes: str, random: Random) -> str:
    """One sentence, or one for each clause, that states the task."""
    roll = random.random()
    if roll < 0.1:
        return f"Given {_INPUT_GIVEN[takes]}, {_joined(clauses, random)}."
    if roll < 0.2:
        return " ".join(f"{capital(clause)}." for clause in clauses)
    return f"{capital(_joined(clauses, random))}."


def request(call: str, clauses: Sequence[str], random: Random) -> str:
    """The chat form; `call` is the function with its parameters, such as `solve(numbers)`."""
    third = _joined([third_person(clause) for clause in clauses], random)
    plain = _joined(clauses, random)
    return random.choice(
        (
            f"Write a Python function `{call}` that {third}.",
            f"Write a function `{call}` that {third}.",
            f"Implement `{call}`, which {third}.",
            f"Write a Python function `{call}`: {plain}.",
        )
    )


def capital(sentence: str) -> str:
    """The sentence with an upper-case first letter, the rest as it is."""
    return sentence[:1].upper() + sentence[1:]


def third_person(clause: str) -> str:
    """'square each number' -> 'squares each number'."""
    verb, _, rest = clause.partition(" ")
    if verb.endswith("y") and verb[-2] not in "aeiou":
        verb = verb[:-1] + "ies"
    elif verb.endswith(("s", "x", "ch", "sh")):
        verb += "es"
    else:
        verb += "s"
    return f"{verb} {rest}"


def _clause(said: Said, last: bool, random: Random) -> str:
    phrase = fill(random.choice(said.operation.phrases), said.words)
    if not said.operation.is_value:
        return phrase
    if last:
        return f"return {phrase}"
    return f"count {phrase}" if phrase.startswith("how ") else f"take {phrase}"


def _nominal(steps: Sequence[Said]) -> str:
    noun = _INPUT_NOUN[steps[0].operation.takes]
    for position, said in enumerate(steps):
        template = said.operation.noun
        if not template or (position and "{x}" not in template):
            return ""
        noun = fill(template, {**said.words, "x": noun})
    return noun


def _joined(clauses: Sequence[str], random: Random) -> str:
    *front, last = clauses
    if not front:
        return last
    return ", ".join(front) + random.choice((", then ", ", then ", " and ", " and then ")) + last
