"""Stop strings and text pieces do not depend on how tokens split the text."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from codemill.chat import Detokenizer
from codemill.engine.generation_config import Distribution
from codemill.engine.sampling_params import SamplingParams
from codemill.engine.sequence import SampledToken, Sequence, SequenceLimits
from codemill.engine.stops import StopScanner

texts = st.text(alphabet="abc", max_size=30)
stop_lists = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=4)


def split(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def expected_text(text: str, stops: tuple[str, ...]) -> str:
    """By definition: read on until the text ends with a stop string, and take the longest that it ends with."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@settings(max_examples=300, deadline=None)
@given(text=texts, stops=stop_lists, cuts=st.lists(st.integers(0, 100), max_size=10))
def test_every_split_gives_the_same_text(text, stops, cuts):
    scanner = StopScanner(stops)
    passed = "".join(scanner.feed(piece) for piece in split(text, cuts)) + scanner.finish()
    assert passed == expected_text(text, tuple(stops))
    assert (scanner.found is not None) == any(stop in text for stop in stops)


@settings(max_examples=150, deadline=None)
@given(text=texts, stops=stop_lists)
def test_nothing_is_passed_on_that_a_stop_could_still_cut(text, stops):
    scanner, passed = StopScanner(stops), ""
    for end, char in enumerate(text, start=1):
        passed += scanner.feed(char)
        if scanner.found is None:
            for continuation in ("", *(stop[size:] for stop in stops for size in range(len(stop)))):
                assert expected_text(text[:end] + continuation, tuple(stops)).startswith(passed)


def test_text_without_stops_is_not_held():
    assert StopScanner(()).feed("anything") == "anything"


class ByteTokens:
    """A tokenizer of the 256 bytes, and two special tokens."""

    special_ids = frozenset({256, 257})

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b"<special>"


def run(ids: list[int], max_tokens: int = 1000, eos: frozenset[int] = frozenset({256}), **params) -> Sequence:
    """Feed a script of tokens until the sequence finishes."""
    asked = SamplingParams(max_tokens=max_tokens, **params)
    limits = SequenceLimits(max_tokens, eos, frozenset(asked.stop_token_ids))
    sequence = Sequence((1,), asked, Distribution(), limits, ByteTokens())
    for token_id in ids:
        if sequence.finish_reason is None:
            sequence.append(SampledToken(token_id))
    return sequence


@settings(max_examples=300, deadline=None)
@given(
    raw=st.one_of(st.binary(min_size=1, max_size=30), st.text(min_size=1, max_size=12).map(str.encode)),
    data=st.data(),
)
def test_pieces_are_whole_characters_and_join_to_the_text(raw, data):
    whole = raw.decode("utf-8", "replace")
    stop = data.draw(st.sampled_from([whole[i:j] for i in range(len(whole)) for j in range(i + 1, i + 4)]))
    sequence = run(list(raw), max_tokens=len(raw), stop=[stop, "zzz"])
    assert "".join(sequence.text_pieces) == expected_text(whole, (stop, "zzz"))
    assert sequence.finish_reason == "stop"
    assert sequence.stop_reason == stop
    unstopped = run(list(raw), max_tokens=len(raw))
    assert unstopped.finish_reason == "length"
    detokenizer = Detokenizer(ByteTokens())
    pieces = [detokenizer.feed(byte) for byte in raw]
    assert unstopped.text_pieces == [piece for piece in (*pieces, detokenizer.finish()) if piece]


def test_text_ends_before_the_token_that_stops():
    for ids, params, reason in (
        ([65, 66, 256], {}, None),
        ([65, 66, 256], {"skip_special_tokens": False}, None),
        ([65, 66, 67], {"stop_token_ids": [67]}, 67),
    ):
        sequence = run(ids, **params)
        output = sequence.output()
        assert (output.text, output.token_ids) == ("AB", ids)
        assert (output.finish_reason, output.stop_reason) == ("stop", reason)


def test_special_tokens_in_the_text_are_optional():
    assert run([65, 257, 66], max_tokens=3).output().text == "AB"
    assert run([65, 257, 66], max_tokens=3, skip_special_tokens=False).output().text == "A<special>B"


def test_no_stop_string_counts_before_min_tokens():
    assert run(list(b"abab"), min_tokens=2, stop="ab").output().text == "ab"
    assert run(list(b"abab"), min_tokens=1, max_tokens=4, stop="ab").output().text == "ab"


def test_an_unfinished_character_at_the_end_is_replaced():
    assert run(list("aé".encode())[:2], max_tokens=2).output().text == "a\N{REPLACEMENT CHARACTER}"
    stopped = run([*list("aé".encode())[:2], 256]).output()
    assert (stopped.text, stopped.finish_reason) == ("a\N{REPLACEMENT CHARACTER}", "stop")


def test_a_held_beginning_of_a_stop_is_text_at_the_end():
    assert run(list(b"xst"), max_tokens=3, stop="stop").output().text == "xst"
