"""How the tokens of a step are split between prompts. No torch here."""

from collections.abc import Sequence


def fair_shares(wants: Sequence[int], budget: int) -> list[int]:
    """Split `budget` so that nobody gets more than wanted, and no one more while another who wants more has less.

    Short prompts thus pass long ones by, and a long one gets what the short ones leave. The first get what does not
    divide evenly.
    """
    shares = [0] * len(wants)
    open_wants = sorted(range(len(wants)), key=lambda i: wants[i])
    for position, i in enumerate(open_wants):
        shares[i] = min(wants[i], budget // (len(open_wants) - position))
        budget -= shares[i]
    for i, want in enumerate(wants):
        more = min(budget, 1, want - shares[i])
        shares[i] += more
        budget -= more
    return shares
