import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.chat import ReasoningSplitter, split_reasoning


@pytest.mark.parametrize(
    ("text", "inside", "reasoning", "content"),
    [
        ("<think>\nhm\n</think>\n\nyes", False, "hm", "yes"),
        ("\n<think>a\n\nb</think>c\n", False, "a\n\nb", "c\n"),
        ("hm\n</think>\n\nyes", True, "hm", "yes"),
        ("just text\n", False, "", "just text\n"),
        ("text with <think> and </think>", False, "", "text with <think> and </think>"),
        ("<think>\n\n</think>\n\nyes", False, "", "yes"),
        ("<think>never closed </thin", False, "never closed </thin", ""),
        ("<thi", False, "", "<thi"),
        ("", True, "", ""),
        (" \n x", False, "", " \n x"),
    ],
)
def test_splitting(text: str, inside: bool, reasoning: str, content: str) -> None:
    answer = split_reasoning(text, inside)
    assert (answer.reasoning, answer.content) == (reasoning, content)


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "\n", " ", "a", "<", "</th", "ink>"]), max_size=10), st.booleans()
)
def test_streaming_equals_the_whole(pieces: list[str], inside: bool) -> None:
    whole = split_reasoning("".join(pieces), inside)
    for parts in (pieces, list("".join(pieces))):
        splitter = ReasoningSplitter(inside)
        answers = [*map(splitter.feed, parts), splitter.finish()]
        assert "".join(answer.reasoning for answer in answers) == whole.reasoning
        assert "".join(answer.content for answer in answers) == whole.content
