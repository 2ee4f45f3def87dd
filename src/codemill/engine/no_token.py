"""Why there is no next token, in words for the one who asked. No torch here."""

import math

from codemill.engine.sequence import Sequence
from codemill.errors import CodemillError


def why_no_token(sequence: Sequence, largest: float, largest_shaped: float) -> CodemillError:
    """The error of a sequence whose logits cannot be sampled from.

    largest: the largest logit that the model produced. largest_shaped: the same after penalties, bias, bans and
    grammar.
    """
    position = len(sequence.token_ids) + 1
    if not math.isfinite(largest):
        return CodemillError(
            f"the model produced NaN or infinite logits at output token {position}: "
            "check the weights, or try dtype='float32'"
        )
    if largest_shaped != -math.inf:
        return CodemillError(
            f"penalties or bias made the logits infinite at output token {position}: choose more moderate ones"
        )
    if sequence.banned_ids:
        return CodemillError(
            f"no token may be output token {position}: all that may come end the output, "
            f"which min_tokens = {sequence.params.min_tokens} forbids; lower it"
        )
    return CodemillError(f"no token may be output token {position}: the structured output allows none; change it")
