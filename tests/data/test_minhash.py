"""MinHash against exact set arithmetic; shapes of programs against renaming and layout."""

import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.data.minhash import MinHashIndex, jaccard
from codemill.data.shingles import Hashes, TokenHashes, program_tokens, shape_windows, windows, words

PROGRAM = '''
def running_total(values, start=0):
    """The sums of all beginnings."""
    total = start
    sums = []
    for value in values:  # in order
        total += value * 2
        sums.append(total)
    return sums
'''


def random_sets(count: int, size: int) -> list[Hashes]:
    draw = np.random.default_rng(0)
    return [np.unique(draw.integers(0, 2**64, size, np.uint64)) for _ in range(count)]


def mixed(base: Hashes, other: Hashes, kept: int) -> Hashes:
    return np.unique(np.concatenate([base[:kept], other[: len(base) - kept]]))


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_jaccard_is_intersection_over_union(a: set[int], b: set[int]) -> None:
    expected = len(a & b) / len(a | b) if a | b else 0.0
    arrays = [np.array(sorted(members), np.uint64) for members in (a, b)]
    assert jaccard(*arrays) == pytest.approx(expected)


def test_equal_signature_entries_estimate_the_jaccard_index() -> None:
    a, b = random_sets(2, 400)
    index = MinHashIndex([], 0.5)
    for kept in (100, 200, 300, 390):
        near = mixed(a, b, kept)
        same = np.mean(index.signature(a) == index.signature(near))
        assert same == pytest.approx(jaccard(a, near), abs=0.13)  # three standard deviations of 128 draws


def test_near_sets_are_found_and_others_are_not() -> None:
    known = random_sets(300, 80)
    strangers = random_sets(700, 80)[300:]
    index = MinHashIndex(known, 0.7)
    for key, members in enumerate(known):
        near = mixed(members, strangers[key], 74)  # Jaccard index about 0.86
        found = index.nearest(near)
        assert found is not None
        assert found.key == key
        assert found.similarity == pytest.approx(jaccard(members, near))
        assert index.nearest(mixed(members, strangers[key], 60)) is None  # about 0.6
        assert index.nearest(strangers[key]) is None


def test_the_most_similar_of_several_is_named() -> None:
    a, b = random_sets(2, 100)
    index = MinHashIndex([mixed(a, b, 90), a, mixed(a, b, 95)], 0.5)
    found = index.nearest(a)
    assert found is not None
    assert (found.key, found.similarity) == (1, 1.0)


def test_an_empty_index_and_an_empty_set_match_nothing() -> None:
    assert MinHashIndex([], 0.7).nearest(random_sets(1, 5)[0]) is None
    assert MinHashIndex(random_sets(1, 5), 0.7).nearest(np.empty(0, np.uint64)) is None
    assert MinHashIndex([], 0.7).largest == 0


def test_the_same_sets_give_the_same_signatures_in_every_process() -> None:
    (members,) = random_sets(1, 50)
    expected = [9427846113897, 1502651984244]
    signature = MinHashIndex([], 0.7).signature(members)
    assert [int(entry) for entry in signature[:2]] == expected
    assert TokenHashes()["range"] == 0x93875A49


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 6))
def test_windows_are_equal_where_the_runs_are(values: list[int], size: int) -> None:
    array = np.array(values, np.uint64)
    runs = [tuple(values[i : i + size]) for i in range(len(values) - size + 1)]
    hashed = windows(array, size).tolist()
    assert len(hashed) == len(runs)
    assert len(set(hashed)) == len(set(runs))
    assert len(set(zip(runs, hashed, strict=True))) == len(set(runs))


def shape(text: str, size: int = 4) -> list[int]:
    return shape_windows(program_tokens(text).tokens, size, TokenHashes()).tolist()


@pytest.mark.parametrize(
    "variant",
    [
        PROGRAM.replace("total", "acc").replace("sums", "out").replace("value", "v").replace("running_acc", "f"),
        PROGRAM.replace('"""The sums of all beginnings."""', "# nothing said").replace("    ", "\t"),
        PROGRAM.replace("values, start=0", "values,\n    start=0,\n").replace("value * 2", "(value * 2)"),
        PROGRAM.replace("\n", "\r\n"),
    ],
)
def test_renaming_layout_and_comments_do_not_change_a_shape(variant: str) -> None:
    assert variant != PROGRAM
    assert shape(variant) == shape(PROGRAM)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("* 2", "* 3"),
        ("+=", "-="),
        ("append(total)", "append(value)"),
        ("for value in", "for start in"),
        ("sums.append", "sums.extend"),
    ],
)
def test_what_a_program_does_changes_its_shape(old: str, new: str) -> None:
    assert shape(PROGRAM.replace(old, new), 8) != shape(PROGRAM, 8)


def test_strings_count_without_their_quotes() -> None:
    assert shape("x = f('abc')") == shape('x = f("abc")')
    assert shape("x = f('abc')") != shape("x = f('abd')")


def test_programs_are_told_from_prose() -> None:
    assert program_tokens(PROGRAM).is_program
    assert program_tokens("int main() { for (int i = 0; i < n; i++) { s += a[i]; } return s; }").is_program
    assert not program_tokens("Write a function (in Python) that doesn't use loops, for a list: it's easy.").is_program
    assert not program_tokens("").is_program


def test_words_ignore_case_and_punctuation() -> None:
    assert words("Foo_bar(1.5, 'Ünï')!") == ["foo_bar", "1", "5", "ünï"]


@pytest.mark.parametrize("piece", ['"""', "/*", "'''", '"', "'\\", "#", "//", "\\", "(", "\0", "\ud800", "a/*/"])
def test_hostile_text_takes_linear_time(piece: str) -> None:
    start = time.monotonic()
    program_tokens(piece * 100_000)
    words(piece * 100_000)
    assert time.monotonic() - start < 5


def test_the_memory_of_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codemill.data.shingles._REMEMBERED", 100)
    hashes = TokenHashes()
    tokens = [f"t{random.Random(i).random()}" for i in range(1000)]
    first = hashes.of(tokens).tolist()
    assert len(hashes) <= 100
    assert hashes.of(tokens).tolist() == first
