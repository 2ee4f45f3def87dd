"""Which of many known texts a new text, or a block of it, is nearly the same as."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codemill.data.minhash import MinHashIndex
from codemill.data.ngrams import KnownText
from codemill.data.shingles import Hashes, ProgramTokens, TokenHashes, program_tokens, shape_windows, word_windows

SHAPE_RUN, WORD_RUN = 4, 3  # tokens of a shingle of programs and of other texts
LEAST_SHINGLES = 12  # a smaller text is too little to say that two of them are the same
# Where a new thing begins: a line that is not indented after an empty one, and the fences of Markdown.
_BLOCK_ENDS = re.compile(r"\n[ \t\r]*\n(?=\S)|^[ \t]*(?:```|~~~).*$", re.MULTILINE)


@dataclass(frozen=True)
class NearDuplicate:
    """`block` is nearly the same as known text number `key`; similarity is the Jaccard index of their shingles."""

    key: int
    similarity: float
    block: str


class NearDuplicateIndex:
    """Known texts by their shingles: of programs the shape, of other texts the words (see `shingles`).

    Left out are texts that say little: those with few shingles, and those to which texts of more than `most_owners`
    owners are near-duplicates, such as the frame of a class around every problem of a suite.
    """

    def __init__(self, known: Sequence[KnownText], threshold: float, most_owners: int, hashes: TokenHashes) -> None:
        self._hashes = hashes
        sets = [np.unique(self._candidates(text.text)[-1][1]) for text in known]
        large = [key for key, members in enumerate(sets) if len(members) >= LEAST_SHINGLES]
        everything = MinHashIndex([sets[key] for key in large], threshold)
        self._keys = []
        for key in large:
            owners = {known[large[neighbour.key]].owner for neighbour in everything.near(sets[key])}
            if len(owners) <= most_owners:
                self._keys.append(key)
        self._index = MinHashIndex([sets[key] for key in self._keys], threshold)
        self._largest = self._index.largest / threshold  # a larger set reaches no similarity

    def find(self, text: str) -> NearDuplicate | None:
        """The first block of `text` that is a near-duplicate, or else the whole of it."""
        for block, runs in self._candidates(text):
            members = np.unique(runs)
            nearest = self._index.nearest(members) if LEAST_SHINGLES <= len(members) <= self._largest else None
            if nearest is not None:
                return NearDuplicate(self._keys[nearest.key], nearest.similarity, block)
        return None

    def _candidates(self, text: str) -> list[tuple[str, Hashes]]:
        """The blocks of a text, if it has several, and last the whole of it, each with its runs of tokens."""
        blocks = _BLOCK_ENDS.split(text)
        programs = [program_tokens(block) for block in blocks]
        tokens = [token for program in programs for token in program.tokens]
        runs = shape_windows(tokens, SHAPE_RUN, self._hashes)
        found = []
        ends = np.cumsum([0, *(len(program.tokens) for program in programs)])
        for block, program, start, end in zip(blocks, programs, ends, ends[1:], strict=False):
            # A run of the whole within one block is a run of that block.
            found.append((block, self._runs(block, program, runs[start : max(start, end - SHAPE_RUN + 1)])))
        if len(blocks) > 1:
            whole = ProgramTokens(tokens, 2 * sum(len(p.tokens) for p in programs if p.is_program) > len(tokens))
            found.append((text, self._runs(text, whole, runs)))
        return found

    def _runs(self, text: str, program: ProgramTokens, runs: Hashes) -> Hashes:
        return runs if program.is_program else word_windows(text, WORD_RUN, self._hashes)
