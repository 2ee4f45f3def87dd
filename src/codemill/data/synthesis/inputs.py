"""Arguments to run solutions on, with edge cases."""

from random import Random

from codemill.data.synthesis.operation import INT, INTS, SCORES, TEXT, WORDS

Argument = int | str | list[int] | list[str] | dict[str, int]

_WORDS = (
    *("apple", "Banana", "kiwi", "pear", "Plum", "orange", "stone", "river", "Tree", "level", "noon", "to", "a"),
    *("light", "Sun", "east", "open", "north", "ENTER", "list", "insert", "lion", "oslo", "eel", "red", "new"),
)  # fmt: skip
_TEXTS = ("level", "noon", "abcba", "A1b2 c3", "2024-06-15", "Hello, World!", "room 101", "  spaced out  ")
_KEYS = ("ann", "bob", "Cara", "ed", "ivy", "olga", "rob", "sam", "tom", "lena", "nora", "pia", "a", "e")
ROUNDS = 6


def argument(kind: str, position: int, small: bool, random: Random) -> Argument:
    """The argument of a type for the test case at `position` (0 to ROUNDS - 1); the third case is the edge case."""
    if kind == INTS:
        return _integers(position, random)
    if kind == WORDS:
        return _words(position, random)
    if kind == TEXT:
        return _text(position, random)
    if kind == INT:
        return _integer(position, small, random)
    if kind == SCORES:
        keys = random.sample(_KEYS, 0 if position == 2 else random.randint(1, 5))
        return {key: random.randint(-2, 15) for key in keys}
    raise AssertionError(f"no arguments for the type {kind}")


def further_argument(kind: str, position: int, random: Random) -> Argument:
    """The argument for a parameter after the first: a small positive count, a letter, or another collection."""
    if kind == INT:
        return random.randint(1, 6)
    if kind == TEXT:
        return random.choice("aeiorstln")
    return argument(kind, position if position != 2 else 3, False, random)


def _integers(position: int, random: Random) -> list[int]:
    if position == 2:
        return []
    low, high = ((-10, 20), (1, 12), (0, 0), (-6, 6), (-20, 5), (0, 30))[position]
    values = [random.randint(low, high) for _ in range(random.randint(4, 7) if position < 2 else random.randint(1, 6))]
    shape = random.random()
    if shape < 0.15:
        return [2 * n for n in values]
    if shape < 0.3:
        return sorted(values)
    return [*values, values[0]] if shape < 0.5 else values


def _words(position: int, random: Random) -> list[str]:
    if position == 2:
        return []
    words = [random.choice(_WORDS) for _ in range(random.randint(1, 5))]
    if position == 3:
        words.append(random.choice(("", f" {words[0]} ", words[0])))
    return [word.lower() for word in words] if position == 4 else words


def _text(position: int, random: Random) -> str:
    if position == 2:
        return ""
    if position in (1, 4):
        return random.choice(_TEXTS)
    return " ".join(random.choice(_WORDS) for _ in range(random.randint(1, 4)))


def _integer(position: int, small: bool, random: Random) -> int:
    if small:
        return (0, 1, random.randint(2, 5), random.randint(3, 7), random.randint(5, 9), random.randint(8, 12))[position]
    low, high = ((10, 99), (100, 9999), (0, 0), (-99, -1), (2, 20), (1, 9))[position]
    return random.randint(low, high)
