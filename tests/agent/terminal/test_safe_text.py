"""Text made fit for a terminal."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("wcwidth")

from codemill.agent.terminal.safe_text import cut, safe_line, safe_text, visible_text, width, wrap

CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
HOSTILE = st.text(st.sampled_from("\x1b\x9b\x9d\x07\x08\r\n\t[]0123;m?hJABz\\ a日é\u202e\u2028\ud800"), max_size=40)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]52;c;c3RvbGVu\x07done", "done"),
        ("\x1b]0;title\x1b\\done", "done"),
        ("\x9b2Jgone", "gone"),
        ("\x1bPdcs\x1b\\x", "x"),
        ("\x1b]52;c;never ended", ""),
        ("\x1b[?1049h\x1b(0x", "x"),
        ("10 %\r20 %\r100 %\n", "100 %\n"),
        ("dos\r\nline\r\n", "dos\nline\n"),
        ("a\tb", "a   b"),
        ("a\x08\x08b", "a\\x08\\x08b"),
        ("x = \u202e'resu'", "x = \\u202e'resu'"),
        ("日本語 and é", "日本語 and é"),
    ],
)
def test_control_sequences(text, expected):
    assert safe_text(text) == expected


@given(HOSTILE)
def test_nothing_that_controls_is_left(text):
    assert not CONTROL.search(safe_text(text))
    assert not CONTROL.search(visible_text(text))
    assert "\n" not in safe_line(text)
    safe_text(text).encode()


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_what_is_approved_is_shown_whole(text):
    """Every character can be found again: only how it is written changes."""
    shown = visible_text(text)
    assert sum(character in shown for character in text if character.isalnum()) == sum(map(str.isalnum, text))


def test_a_command_cannot_hide():
    assert visible_text("rm -rf ~\r# harmless") == "rm -rf ~\\x0d# harmless"
    assert visible_text("rm\x1b[8m -rf ~") == "rm\\x1b[8m -rf ~"


@given(st.text(st.sampled_from("ab 日é\u0301\n"), max_size=60), st.integers(2, 20))
def test_wrapping(text, columns):
    lines = wrap(text, columns)
    assert all(width(line) <= columns for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_cutting():
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abcde…"
    assert cut("日本語", 5) == "日本…"
    assert cut("abc", 0) == ""
