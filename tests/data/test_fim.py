"""Holes in text: the parts join to the text, the kinds come in their shares, evaluation lines are code."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.data.fim import FimExample, fim_text, fim_transform, single_line_example
from codemill.errors import CodemillError

CODE = '''import os

# a comment line
def f(x):
    """Explain f.

    At length.
    """
    if x:
        return os.getpid()

    total = x + 1
    return total
'''
CODE_LINES = {"import os", "def f(x):", "if x:", "return os.getpid()", "total = x + 1", "return total"}


@given(text=st.text(min_size=1), seed=st.integers(0, 2**32))
def test_parts_join_to_the_text_and_the_middle_is_not_empty(text: str, seed: int) -> None:
    example = fim_transform(text, random.Random(seed))
    assert example.prefix + example.middle + example.suffix == text
    assert example.middle


def test_kinds_of_span_come_in_their_shares() -> None:
    middles = [fim_transform(CODE, random.Random(seed)).middle for seed in range(3000)]
    lines = sum(middle.strip() in CODE_LINES and "\n" not in middle for middle in middles)
    assert 0.35 < lines / len(middles) < 0.5
    assert 0.3 < sum("\n" in middle for middle in middles) / len(middles) < 0.65


def test_single_lines_are_code_from_after_their_indentation() -> None:
    examples = [single_line_example(CODE, random.Random(seed)) for seed in range(300)]
    assert {example.middle for example in examples if example} == CODE_LINES
    for example in examples:
        assert example is not None
        assert example.prefix + example.middle + example.suffix == CODE
        assert example.suffix.startswith("\n")
        assert example.prefix == "" or example.prefix[-1] in " \n"


@pytest.mark.parametrize("text", ["", "\n\n", "# only\n# comments\n", "x\n", '"""doc\nstring text\n"""\n'])
def test_no_fit_line(text: str) -> None:
    assert single_line_example(text, random.Random(0)) is None


def test_same_seed_same_hole() -> None:
    assert fim_transform(CODE, random.Random(3)) == fim_transform(CODE, random.Random(3))


def test_empty_text_is_refused() -> None:
    with pytest.raises(CodemillError, match="empty text"):
        fim_transform("", random.Random(0))


def test_text_is_in_psm_order() -> None:
    expected = "<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>M<|endoftext|>"
    assert fim_text(FimExample(prefix="P", middle="M", suffix="S")) == expected
