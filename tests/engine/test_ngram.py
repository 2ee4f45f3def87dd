"""Prompt lookup, held to a search through all that came before."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.engine.ngram import NgramIndex

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=40)


def search(token_ids: list[int], min_match: int, max_match: int, count: int) -> list[int]:
    """What followed the latest earlier occurrence of the longest ending, read on into what is being proposed."""
    for size in range(max_match, min_match - 1, -1):
        for end in range(len(token_ids) - 1, size - 1, -1):
            if token_ids[end - size : end] == token_ids[-size:]:
                text = list(token_ids)
                for position in range(end, end + count):
                    text.append(text[position])
                return text[len(token_ids) :]
    return []


@given(TOKENS, st.integers(1, 3), st.integers(0, 3), st.integers(0, 12))
def test_proposals_are_those_of_a_search(token_ids, min_match, more, count):
    index = NgramIndex(min_match, min_match + more)
    assert index.propose(token_ids, count) == search(token_ids, min_match, min_match + more, count)


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=8))
def test_growing_tokens(pieces):
    """Several at a time, as when drafts are accepted, or none, as when nothing was scheduled."""
    index, token_ids = NgramIndex(2, 4), [0]
    for piece in pieces:
        token_ids += piece
        assert index.propose(token_ids, 5) == search(token_ids, 2, 4, 5)


def test_a_loop_is_continued_beyond_its_end():
    assert NgramIndex(2, 5).propose([1, 2, 3, 1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]
    assert NgramIndex(1, 1).propose([5, 5], 4) == [5, 5, 5, 5]


def test_longer_matches_count_before_later_ones():
    token_ids = [1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3]
    assert NgramIndex(2, 3).propose(token_ids, 1) == [7]
    assert NgramIndex(2, 2).propose(token_ids, 1) == [8]


@pytest.mark.parametrize("token_ids", [[1], [1, 2], [1, 2, 3, 4, 5, 6]])
def test_nothing_is_made_up(token_ids):
    assert NgramIndex(2, 5).propose(token_ids, 4) == []


def test_a_token_more_costs_no_search():
    index, token_ids = NgramIndex(2, 5), [i % 1009 for i in range(50_000)]
    index.propose(token_ids, 8)
    start = time.perf_counter()
    for i in range(100):
        token_ids.append(i)
        index.propose(token_ids, 8)
    assert time.perf_counter() - start < 0.5, "a search of 50,000 tokens a hundred times takes seconds"
