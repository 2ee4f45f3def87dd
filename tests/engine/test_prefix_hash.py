"""Names of blocks: equal for equal beginnings only, and the same in every process."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from codemill.engine.prefix_hash import DIGEST_BYTES, block_hash, extend_hashes

IDS = st.integers(0, 2**31)
TOKENS = st.lists(st.integers(0, 3), max_size=24)
SIZES = st.integers(1, 5)
ROOTS = st.sampled_from([b"", b"adapter", b"another"])


def names_of(tokens: list[int], size: int, root: bytes = b"") -> list[bytes]:
    names: list[bytes] = []
    extend_hashes(names, tokens, size, root)
    return names


@given(st.tuples(TOKENS, ROOTS), st.tuples(TOKENS, ROOTS), SIZES)
def test_names_agree_as_far_as_everything_before_does(one, other, size):
    pairs = zip(names_of(one[0], size, one[1]), names_of(other[0], size, other[1]), strict=False)
    for position, (name, its_name) in enumerate(pairs, 1):
        stop = position * size
        assert (name == its_name) == (one[1] == other[1] and one[0][:stop] == other[0][:stop])


@given(st.lists(IDS, max_size=40), SIZES, st.data())
def test_growing_names_are_those_of_the_whole(tokens, size, data):
    names: list[bytes] = []
    for stop in sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=5))):
        extend_hashes(names, tokens[:stop], size, b"root")
    extend_hashes(names, tokens, size, b"root")
    assert names == names_of(tokens, size, b"root")
    assert len(names) == len(tokens) // size
    assert all(len(name) == DIGEST_BYTES for name in names)


def test_the_same_tokens_elsewhere_have_another_name():
    first, second = names_of([7, 8, 7, 8], 2)
    assert first != second
    assert first == block_hash(b"", (7, 8))
    assert second == block_hash(first, [7, 8])


def test_names_outlive_the_process():
    code = "from codemill.engine.prefix_hash import block_hash; print(block_hash(b'a', [1, 151935]).hex())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == block_hash(b"a", [1, 151935]).hex()
