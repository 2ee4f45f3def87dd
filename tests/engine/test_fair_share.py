"""Fair shares, held to dealing the budget out token by token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.engine.fair_share import fair_shares

WANTS = st.lists(st.integers(0, 40), max_size=12)


def deal_out(wants: list[int], budget: int) -> list[int]:
    """One token to each who still wants one, in order, until nothing is left."""
    shares = [0] * len(wants)
    while budget and shares != wants:
        for i, want in enumerate(wants):
            if shares[i] < want and budget:
                shares[i] += 1
                budget -= 1
    return shares


@given(WANTS, st.integers(0, 200))
def test_shares_are_those_of_dealing_out(wants, budget):
    assert fair_shares(wants, budget) == deal_out(wants, budget)


@given(WANTS, st.integers(0, 200))
def test_nobody_has_more_than_another_who_wants_more(wants, budget):
    shares = fair_shares(wants, budget)
    assert sum(shares) == min(budget, sum(wants))
    for i, share in enumerate(shares):
        assert 0 <= share <= wants[i]
        for other, its_share in enumerate(shares):
            assert share <= its_share + 1 or its_share == wants[other]


@pytest.mark.parametrize(
    ("wants", "budget", "expected"),
    [
        ([], 5, []),
        ([1000, 3, 5], 64, [56, 3, 5]),
        ([1000, 1000], 64, [32, 32]),
        ([5, 5, 5], 7, [3, 2, 2]),
        ([5, 5, 5], 1, [1, 0, 0]),
        ([9, 1, 9], 2, [1, 1, 0]),
    ],
)
def test_the_first_get_what_does_not_divide(wants, budget, expected):
    assert fair_shares(wants, budget) == expected
