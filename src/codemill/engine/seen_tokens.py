"""Which tokens a sequence has seen so far. No torch here. L different tokens."""

from collections.abc import Sequence

import numpy as np


class SeenTokens:
    """The different tokens of a prompt and its output, and how often each occurs in the output."""

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        self._places = {token_id: place for place, token_id in enumerate(dict.fromkeys(prompt_token_ids))}
        self._ids = np.array(list(self._places), dtype=np.int64)
        self._counts = np.zeros(len(self._ids), dtype=np.float32)
        self._num_counted = 0

    def update(self, token_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Given the output so far, which begins as it did the last time: ids [L], and their counts in it [L]."""
        for token_id in token_ids[self._num_counted :]:
            place = self._place(token_id)  # may make the arrays anew
            self._counts[place] += 1
        self._num_counted = len(token_ids)
        return self._ids[: len(self._places)], self._counts[: len(self._places)]

    def _place(self, token_id: int) -> int:
        place = self._places.get(token_id)
        if place is None:
            place = self._places[token_id] = len(self._places)
            if place == len(self._ids):  # full: twice the room
                self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
                self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            self._ids[place] = token_id
        return place
