"""Packing many documents at once against placing them one by one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codemill.data.best_fit import fill_bins


def one_by_one(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing; of bins with equal space the one that came to have it last."""
    bins: list[list[int]] = []
    with_free: dict[int, list[list[int]]] = {}
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        fitting = [free for free, members in with_free.items() if members and free >= length]
        free = min(fitting, default=capacity)
        if fitting:
            chosen = with_free[free].pop()
        else:
            chosen = []
            bins.append(chosen)
        chosen.append(index)
        with_free.setdefault(free - length, []).append(chosen)
    return bins


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.lists(st.integers(1, n), max_size=150), st.just(n))))
def test_the_same_bins_in_the_same_order(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    assert [members.tolist() for members in fill_bins(lengths, capacity)] == one_by_one(lengths, capacity)


def test_more_bins_than_fit_in_16_bits() -> None:
    lengths = np.random.default_rng(0).integers(1, 5, 300_000)
    bins = fill_bins(lengths, 4)
    assert len(bins) > 1 << 16
    assert sorted(bins.members) == list(range(len(lengths)))
    assert np.add.reduceat(lengths[bins.members], bins.offsets[:-1]).max() <= 4
    ones, twos, threes, fours = np.bincount(lengths)[1:].tolist()
    assert ones < threes  # so that a one stands beside a three, and a two beside a two
    assert len(bins) == fours + threes + -(-twos // 2)
