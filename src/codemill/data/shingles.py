"""Texts as sets of numbers: overlapping runs of tokens, hashed, so that parts of texts can be compared quickly.

Two ways to see a text. `words`: what remains when layout, punctuation and case are ignored. `shape`: a program without
its comments and docstrings, in which a name stands only for where it occurred before, so that renaming changes nothing.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_WORD = re.compile(r"\w+")
# Comments and docstrings come first, so that nothing in them is taken for code. One without an end takes the rest, and
# a string has 300 characters at most: searching for an end from each of many beginnings would take quadratic time.
_CODE = re.compile(
    r'"""[\s\S]*?(?:"""|\Z)' + r"|'''[\s\S]*?(?:'''|\Z)|/\*[\s\S]*?(?:\*/|\Z)|//[^\n]*|#[^\n]*|"
    r'"(?:\\.|[^"\\\n]){0,300}"|' + r"'(?:\\.|[^'\\\n]){0,300}'|[^\W\d]\w*|\d[\w.]*|[^\w\s]"
)
_COMMENTS = ('"""', "'''", "/*", "//", "#")
_MARKS = frozenset("()[]{}=;:")
_PROGRAM_SHARE = 0.2  # of its tokens are such marks from which on a text is a program
_LAYOUT = frozenset("(),;")  # left out of shapes: formatters and habits add and remove them
_ODD = np.uint64(0x9E3779B97F4A7C15)  # the golden ratio in 64 bits, as in Fibonacci hashing
_REMEMBERED = 1 << 20  # tokens
# Words that nobody renames. Any other name may be a variable somewhere, and a keyword that is missing here costs
# little, since it stands in both of two copies.
FIXED_NAMES = frozenset(
    """
    False None True and as assert async await break class continue def del elif else except finally for from global if
    import in is lambda nonlocal not or pass raise return try while with yield print range len int str float bool list
    dict set tuple sorted sum max min abs map filter zip enumerate any all isinstance round reversed ord chr pow divmod
    self cls super Exception ValueError TypeError KeyError IndexError
    switch case default do goto struct enum union typedef const static extern void char short long double unsigned auto
    using namespace template typename public private protected virtual override new delete this throw throws catch
    interface extends implements abstract instanceof boolean String Integer List ArrayList Map HashMap Math System
    function let undefined null true false func fn mut impl pub crate elsif println printf include
    """.split()
)


class TokenHashes(dict[str, int]):
    """Token -> 32 bits that depend on the token alone; remembers the tokens it has seen, up to a bound."""

    def __missing__(self, token: str) -> int:
        if len(self) >= _REMEMBERED:
            self.clear()
        value = self[token] = zlib.crc32(token.encode("utf-8", "surrogatepass"))
        return value

    def of(self, tokens: Sequence[str]) -> Hashes:
        return np.fromiter(map(self.__getitem__, tokens), np.uint64, len(tokens))


def words(text: str) -> list[str]:
    """Letters, digits and underscores in runs, lower case."""
    return _WORD.findall(text.lower())


def windows(values: Hashes, size: int) -> Hashes:
    """A hash for each run of `size` neighbours in `values` [N] -> [N - size + 1], in order; empty if there is none."""
    count = len(values) - size + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for j in range(size):
        total = (total + values[j : j + count] + np.uint64(1)) * _ODD
    return _mixed(total)


@dataclass(frozen=True)
class ProgramTokens:
    """The tokens of a program but for comments, docstrings and marks of layout. is_program: whether brackets, equals
    signs and the like are as frequent among all its tokens as they are in programs."""

    tokens: list[str]
    is_program: bool


def program_tokens(text: str) -> ProgramTokens:
    """Any text read as a program, of whatever language."""
    tokens = [token for token in _CODE.findall(text) if not token.startswith(_COMMENTS)]
    marks = sum(token in _MARKS for token in tokens)
    shape = [token for token in tokens if token not in _LAYOUT]
    return ProgramTokens(shape, marks >= _PROGRAM_SHARE * len(tokens) > 0)


def shape_windows(tokens: Sequence[str], size: int, hashes: TokenHashes) -> Hashes:
    """A hash for each run of `size` tokens of a program, in order, the same after consistent renaming.

    A name is replaced by how far back in the run it occurred last, 0 if it did not (Baker 1993, parameterized strings).
    """
    count = len(tokens) - size + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    fixed, back = _fixed_and_back(tokens, hashes)
    total = np.zeros(count, np.uint64)
    for j in range(size):
        distance = back[j : j + count]
        seen = np.where(distance <= j, distance, 0).astype(np.uint64)
        total = (total + fixed[j : j + count] + seen + np.uint64(1)) * _ODD
    return _mixed(total)


def word_windows(text: str, size: int, hashes: TokenHashes) -> Hashes:
    """A hash for each run of `size` words, in order."""
    return windows(hashes.of(words(text)), size)


def _fixed_and_back(tokens: Sequence[str], hashes: TokenHashes) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """For each token its hash, 0 for a name, and for each name the distance to where it occurred before."""
    fixed, back = [0] * len(tokens), [0] * len(tokens)
    last: dict[str, int] = {}
    before = ""
    for i, token in enumerate(tokens):
        if before != "." and token not in FIXED_NAMES and token.isidentifier():
            back[i] = i - last.get(token, i)
            last[token] = i
        else:
            fixed[i] = hashes[token.strip("'\"") or "''"] + (1 << 32)
        before = token
    return np.array(fixed, np.uint64), np.array(back, np.int64)


def _mixed(values: Hashes) -> Hashes:
    """Spread the difference between numbers over all their bits (the finalizer of MurmurHash3)."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))
