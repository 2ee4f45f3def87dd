"""Preference pairs: passing over failing, none twice, nothing from one-sided prompts."""

import json
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.data.preferences import Attempt, preference_pairs, write_records
from codemill.errors import UsageError

PROMPT = ({"role": "user", "content": "Write f."},)


def attempts(passing: str, failing: str) -> list[Attempt]:
    return [Attempt(text, True) for text in passing] + [Attempt(text, False) for text in failing]


def test_the_most_frequent_answers_meet_first() -> None:
    pairs = preference_pairs(PROMPT, attempts("abb", "xyyzzz"), most=3)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("b", "z"), ("a", "y"), ("b", "x")]
    assert all(pair.prompt == PROMPT for pair in pairs)


@pytest.mark.parametrize(("passing", "failing"), [("", "xy"), ("ab", ""), ("", "")])
def test_answers_of_one_kind_make_no_pair(passing: str, failing: str) -> None:
    assert preference_pairs(PROMPT, attempts(passing, failing)) == []


@given(st.text("abcd", max_size=8), st.text("wxyz", max_size=8), st.integers(1, 20))
def test_pairs_are_distinct_and_use_every_answer_before_one_returns(passing: str, failing: str, most: int) -> None:
    pairs = [(pair.chosen, pair.rejected) for pair in preference_pairs(PROMPT, attempts(passing, failing), most)]
    assert len(pairs) == min(most, len(set(passing)) * len(set(failing)))
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) <= set(product(passing, failing))
    longer = max(len(set(passing)), len(set(failing)))
    side = 0 if len(set(passing)) == longer else 1
    assert max(Counter(pair[side] for pair in pairs[:longer]).values(), default=1) == 1


def test_a_number_of_pairs_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        preference_pairs(PROMPT, attempts("a", "x"), most=0)


def test_records_are_lists_of_messages(tmp_path: Path) -> None:
    pairs = preference_pairs(PROMPT, attempts("ä", "x"))
    assert write_records(tmp_path / "pairs" / "train.jsonl", (pair.record() for pair in pairs)) == 1
    (line,) = (tmp_path / "pairs" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {
        "prompt": list(PROMPT),
        "chosen": [{"role": "assistant", "content": "ä"}],
        "rejected": [{"role": "assistant", "content": "x"}],
    }


def test_a_file_that_fails_halfway_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    write_records(path, [{"a": 1}])
    with pytest.raises(TypeError):
        write_records(path, [{"a": 2}, {"a": {1}}])
    assert path.read_text() == '{"a": 1}\n'
