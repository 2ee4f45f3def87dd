"""How the tokens of a step are split between prompts. No torch here."""

from collections.abc import Sequence


def fair_shares(wants: Sequence[int], budget: int) -> list[int]:
    """Split `budget` so that nobody gets more than wanted, and no one more while another who wants more has less.

    Short prompts thus pass long ones by, and a long one gets what the short ones leave. The first get what does not
    divide evenly.
    """
    level = _level(sorted(wants), budget)
    shares = [min(want, level) for want in wants]
    left = budget - sum(shares)
    for i, want in enumerate(wants):
        more = min(left, 1, want - shares[i])
        shares[i] += more
        left -= more
    return shares


def _level(wants: list[int], budget: int) -> int:
    """The most that everyone may have; `wants` ascend."""
    for position, want in enumerate(wants):
        level = budget // (len(wants) - position)
        if want > level:
            return level
        budget -= want
    return wants[-1] if wants else 0
