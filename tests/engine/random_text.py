"""A "model" of random choices for the tests of grammars: what it writes is limited by the grammar's mask alone."""

import random
from collections.abc import Sequence

import numpy as np

from codemill.chat import Tokenizer
from codemill.engine.grammar import GrammarState

HINTS = ('"', '"', "}", "]", '"}', "\n</parameter>\n", "\n</function>\n", "0", "a", "b", "y")


class RandomModel:
    """Chooses among the allowed tokens at random, and now and then starts to write something that ends things.

    Without that a random text would hardly ever end. Every token is checked against the mask and the forced tokens.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, seed: object, hints: Sequence[str] = HINTS) -> None:
        self.tokenizer = tokenizer
        self.random = random.Random(str(seed))
        self.row = np.zeros(-(-vocab_size // 32), dtype=np.int32)
        self.hints = [tokenizer.encode(hint) for hint in hints]
        self.plan: list[int] = []

    def allowed(self, state: GrammarState) -> np.ndarray:
        """The ids that the mask allows."""
        state.fill_mask(self.row)
        return np.nonzero(np.unpackbits(self.row.view(np.uint8), bitorder="little"))[0]

    def write(self, state: GrammarState, max_tokens: int = 400) -> list[int] | None:
        """Token ids up to the end of the text, without the end-of-text id; None if it did not end in time."""
        ids: list[int] = []
        while not state.is_finished and len(ids) < max_tokens:
            allowed = self.allowed(state)
            forced = state.forced_tokens()
            assert not forced or allowed.tolist() == forced[:1]
            assert len(allowed) > 0
            token_id = self._choose(allowed, len(ids) / max_tokens)
            state.accept(token_id)
            ids.append(token_id)
        if not state.is_finished:
            return None
        return [token_id for token_id in ids if token_id not in self.tokenizer.eos_token_ids]

    def _choose(self, allowed: np.ndarray, haste: float) -> int:
        ends = [i for i in self.tokenizer.eos_token_ids if i in allowed]
        if ends and self.random.random() < 0.2 + haste:
            return self.random.choice(ends)
        if not self.plan and self.random.random() < 0.4 + haste:
            self.plan = list(self.random.choice(self.hints))
        if self.plan and self.plan[0] in allowed:
            return self.plan.pop(0)
        self.plan = []
        return int(self.random.choice(allowed))
