"""Pairs in rows: both documents beside each other, each pair once, prompts on one side of the split."""

import numpy as np
import pytest

from codemill.data.conversations import PreferencePair
from codemill.data.packed_pairs import PackedPairs, split_pairs
from codemill.data.packing import Document
from codemill.errors import CodemillError


def make_pairs(count: int, seed: int = 0) -> list[PreferencePair]:
    """Prompts of 1 to 4 tokens, answers of 1 to 6; the first token of a prompt numbers the pair."""
    rng = np.random.default_rng(seed)

    def document(prompt: list[int]) -> Document:
        answer = rng.integers(0, 50, rng.integers(1, 7)).tolist()
        return Document.of(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer))

    prompts = [[i, *rng.integers(0, 50, rng.integers(0, 4)).tolist()] for i in range(count)]
    return [PreferencePair(document(prompt), document(prompt)) for prompt in prompts]


@pytest.mark.parametrize("packing", [True, False])
def test_every_pair_is_in_one_row_chosen_first(packing: bool) -> None:
    pairs = make_pairs(40)
    packed = PackedPairs(pairs, 32, pad_id=0, packing=packing)
    taken = packed.take(range(len(packed)))
    assert sorted(taken.pairs.tolist()) == list(range(40))
    assert (taken.pairs_in_row.max() > 1) == packing
    numbers = iter(taken.pairs)
    for row, count in enumerate(taken.pairs_in_row):
        assert taken.rows.document_ids[row].max() == 2 * count - 1
        for place in range(count):
            pair = pairs[next(numbers)]
            for offset, document in enumerate((pair.chosen, pair.rejected)):
                where = taken.rows.document_ids[row] == 2 * place + offset
                assert taken.rows.input_ids[row, where].tolist() == document.ids.tolist()
                assert taken.rows.loss_weights[row, where].tolist() == document.weights.tolist()
    assert packed.num_tokens == (taken.rows.document_ids >= 0).sum()


def test_a_pair_that_fits_no_row_is_named() -> None:
    long = Document.of(range(11))
    with pytest.raises(CodemillError, match="pair 2 has 22 tokens, but a row 20"):
        PackedPairs([*make_pairs(2), PreferencePair(long, long)], 20, pad_id=0)


def test_pairs_of_one_prompt_stay_together() -> None:
    pairs = make_pairs(200) + make_pairs(200)
    train, held_out = split_pairs(pairs, 0.2, seed=1)
    assert len(train) + len(held_out) == 400
    assert 40 < len(held_out) < 120
    first = [{int(pair.chosen.ids[0]) for pair in side} for side in (train, held_out)]
    assert not first[0] & first[1]
