from hypothesis import given, settings
from hypothesis import strategies as st

from codemill.chat import Detokenizer, Tokenizer


def stream(tokenizer: Tokenizer, pieces: list[list[int]], skip: bool = False) -> str:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    return "".join(detokenizer.feed(piece) for piece in pieces) + detokenizer.finish()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 420), max_size=4)), st.booleans())
def test_streaming_equals_decoding_the_whole(small: Tokenizer, pieces: list[list[int]], skip: bool) -> None:
    whole = small.decode([i for piece in pieces for i in piece], skip_special_tokens=skip)
    assert stream(small, pieces, skip) == whole


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_no_character_is_broken(small: Tokenizer, text: str) -> None:
    detokenizer = Detokenizer(small)
    deltas = [detokenizer.feed(i) for i in small.encode(text)]
    assert text.count("\ufffd") == "".join(deltas).count("\ufffd")
    assert detokenizer.finish() == ""


def test_an_unfinished_character_is_flushed_once(small: Tokenizer) -> None:
    ids = small.encode("\U0001f600")[:-1]
    detokenizer = Detokenizer(small)
    assert [detokenizer.feed(i) for i in ids] == [""] * len(ids)
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.finish() == ""
    assert detokenizer.feed(small.encode("ok")) == "ok"
