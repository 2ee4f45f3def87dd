"""Which of many known texts share a run of n words with a new one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from codemill.data.shingles import FIXED_NAMES, Hashes, TokenHashes, windows, words

SHORTEST_TEXT = 6  # words; a known text with fewer than n counts as one run if it has as many as this
_LEAST_DIFFERENT = 4  # words in a run
# More words of programs, instructions and tests that say nothing of their problem.
_PLAIN_WORDS = frozenset(
    """
    candidate check append join split upper lower res result value values main std string vector array object type end
    then begin local var use ref my sub echo puts require module package export import usize i32 i64 u64 f64 vec some ok
    math lst nums arr num val length size count index push equal test assertequal assert_equal an the of to is it
    """.split()
)
_COMMON_WORDS = frozenset(name.lower() for name in FIXED_NAMES) | _PLAIN_WORDS

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KnownText:
    """A text to look for. owner: what it belongs to; a run of words that many owners share is nobody's."""

    text: str
    owner: str


@dataclass(frozen=True)
class SharedRun:
    """The first run of words that a text shares with known text number `key`."""

    key: int
    words: str


@dataclass(frozen=True)
class _Runs:
    """Runs of `size` words: their hashes, sorted, and in which known text and at which word each begins."""

    size: int
    hashes: Hashes
    keys: Numbers
    places: Numbers

    def hits(self, words_of_text: Hashes) -> Iterator[tuple[int, int, int]]:
        """(place in the text, key, place in the known text) of the runs that are probably shared, in order."""
        found = windows(words_of_text, self.size)
        if len(self.hashes) == 0:
            return
        entries = np.minimum(np.searchsorted(self.hashes, found), len(self.hashes) - 1)
        for start in np.flatnonzero(self.hashes[entries] == found):
            yield int(start), int(self.keys[entries[start]]), int(self.places[entries[start]])


class NgramIndex:
    """Known texts by their runs of `size` words, and those too short for one by all their words.

    Left out are runs that more than `most_owners` owners share (boilerplate), runs of few different words, and runs
    without a telling word, of numbers, single letters, keywords and names that every program uses.
    """

    def __init__(self, known: Sequence[KnownText], size: int, most_owners: int, hashes: TokenHashes) -> None:
        self._hashes = hashes
        self._words = [words(text.text) for text in known]
        numbers = {owner: number for number, owner in enumerate(dict.fromkeys(text.owner for text in known))}
        owners = np.array([numbers[text.owner] for text in known], np.int64)
        long = [key for key, tokens in enumerate(self._words) if len(tokens) >= size]
        self._tables = [self._table(long, size, owners, most_owners)]
        for length in range(SHORTEST_TEXT, size):
            short = [key for key, tokens in enumerate(self._words) if len(tokens) == length]
            self._tables.append(self._table(short, length, owners, most_owners))

    def first_shared(self, text: str) -> SharedRun | None:
        """A run of `text` that a known text has too: the first, if there are several of n words."""
        tokens = words(text)
        hashes = self._hashes.of(tokens)
        for table in self._tables:
            for start, key, place in table.hits(hashes):
                run = tokens[start : start + table.size]
                if self._words[key][place : place + table.size] == run:  # equal hashes alone prove nothing
                    return SharedRun(key, " ".join(run))
        return None

    def _table(self, keys: Sequence[int], size: int, owners: Numbers, most_owners: int) -> _Runs:
        found = [self._telling_runs(key, size) for key in keys]
        hashes = np.concatenate([*(runs for runs, _ in found), np.empty(0, np.uint64)])
        places = np.concatenate([*(place for _, place in found), np.empty(0, np.int64)])
        of_key = np.repeat(np.array(keys, np.int64), [len(runs) for runs, _ in found])
        kept = np.isin(hashes, _boilerplate(hashes, owners[of_key], most_owners), invert=True)
        unique, first = np.unique(hashes[kept], return_index=True)
        return _Runs(size, unique, of_key[kept][first], places[kept][first])

    def _telling_runs(self, key: int, size: int) -> tuple[Hashes, Numbers]:
        """The runs of a known text that say something about it, without repetition, and where they begin."""
        tokens = self._words[key]
        runs, places = np.unique(windows(self._hashes.of(tokens), size), return_index=True)
        told = np.array([_is_telling_run(tokens[place : place + size]) for place in places], bool)
        return runs[told], places[told]


def _is_telling_run(run: Sequence[str]) -> bool:
    different = set(run)
    return len(different) >= _LEAST_DIFFERENT and any(map(_is_telling, different))


@lru_cache(1 << 16)
def _is_telling(word: str) -> bool:
    """Whether a lower-case word says something about its text: two letters at least, and no common name."""
    if word in _COMMON_WORDS or word.startswith("__"):
        return False
    return sum(map(str.isalpha, word)) >= 2


def _boilerplate(hashes: Hashes, owners: Numbers, most_owners: int) -> Hashes:
    """The runs that more than `most_owners` different owners have."""
    pairs = np.unique(np.stack([hashes, owners.astype(np.uint64)]), axis=1)
    found, counts = np.unique(pairs[0], return_counts=True)
    return found[counts > most_owners]
