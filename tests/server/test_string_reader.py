"""Text out of JSON that is still arriving."""

import json
import random

import pytest

from codemill.server.protocols.string_reader import StringReader

TEXTS = [
    "",
    "plain",
    'a "quoted" \\ back\\\\slash',
    "line\nbreak\ttab\r\x00",
    "ü 你 😀 \u2028",
    "\\",
    "\\u0041",
    "😀" * 3,
    '\\"',
]


def read(pieces: list[str]) -> str:
    reader = StringReader("input")
    return "".join(reader.feed(piece) for piece in pieces)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_every_cut_gives_the_same(text: str, ensure_ascii: bool) -> None:
    whole = json.dumps({"input": text, "other": "x"}, ensure_ascii=ensure_ascii)
    assert read([whole]) == text
    assert read(list(whole)) == text
    generator = random.Random(0)
    for _ in range(50):
        cuts = sorted(generator.choices(range(len(whole) + 1), k=4))
        assert read([whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]) == text


def test_text_comes_as_soon_as_it_is_certain() -> None:
    reader = StringReader("input")
    pieces = ['{"inp', 'ut": "a', "b\\", "nc\\ud83d", "\\ude0", '0d"}']
    assert [reader.feed(piece) for piece in pieces] == ["", "a", "b", "\nc", "", "😀d"]


@pytest.mark.parametrize("arguments", ["{}", '{"other": "x"}', '{"input": 3}', '{"other": 1, "input": "x"}'])
def test_what_is_no_such_text(arguments: str) -> None:
    assert read(list(arguments)) == ""


def test_half_a_character_is_no_harm() -> None:
    assert read(['{"input": "a\\ud83d b"}']) == "a\ufffd b"
