"""Markdown in blocks while it is written, and as a terminal shows it."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codemill.agent.terminal.ink import Ink
from codemill.agent.terminal.markdown import render_document, render_markdown
from codemill.agent.terminal.markdown_blocks import BlockSplitter

LINES = st.lists(
    st.sampled_from(
        ["a", "", "- x", "1. y", "  in", "    deep", "```", "```py", "~~~", "# H", "| a |", "  ```", "text"]
    ),
    max_size=14,
)


def blocks(text: str) -> list[str]:
    splitter = BlockSplitter()
    return [*splitter.feed(text), *splitter.finish()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo\n\nthree", ["one\ntwo", "three"]),
        ("# Title\ntext", ["# Title", "text"]),
        ("text\n```py\na\n\nb\n```\nmore", ["text", "```py\na\n\nb\n```", "more"]),
        ("````\n```\n````\n", ["````\n```\n````"]),
        ("```\nnever ended", ["```\nnever ended"]),
        ("- a\n\n- b\n\n  of b\n\nafter", ["- a\n\n- b\n\n  of b", "after"]),
        ("1. a\n   ```\n   x\n\n   y\n   ```\n2. b\n", ["1. a\n   ```\n   x\n\n   y\n   ```\n2. b"]),
        ("- a\n```\nx\n```\n", ["- a", "```\nx\n```"]),
        ("| a |\n|---|\n| 1 |\n\nend", ["| a |\n|---|\n| 1 |", "end"]),
    ],
)
def test_blocks(text, expected):
    assert blocks(text) == expected


def test_a_block_comes_as_soon_as_it_is_finished():
    splitter = BlockSplitter()
    assert splitter.feed("one\n") == []
    assert splitter.rest == "one\n"
    assert splitter.feed("\ntw") == ["one"]
    assert splitter.rest == "tw"
    assert splitter.feed("o\n```\ncode\n``") == ["two"]
    assert splitter.feed("`\n") == ["```\ncode\n```"]
    assert splitter.rest == ""


@given(LINES, st.data())
def test_pieces_do_not_matter_and_nothing_is_lost(lines, data):
    text = "\n".join(lines)
    splitter, found, rest = BlockSplitter(), [], text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        found += splitter.feed(rest[:size])
        rest = rest[size:]
    found += splitter.finish()
    assert found == blocks(text)
    assert [line for block in found for line in block.split("\n") if line.strip()] == [
        line for line in lines if line.strip()
    ]


@settings(max_examples=40, deadline=None)
@given(LINES)
def test_rendering_takes_whatever_comes(lines):
    shown = render_document("\n".join(lines), 40, Ink(colour=False))
    assert not shown.startswith("\n")
    assert "\n\n\n\n" not in shown or "```" in lines or "~~~" in lines or "```py" in lines or "  ```" in lines


def test_code_is_not_wrapped_and_has_no_spaces_at_its_end():
    code = "x" * 90
    shown = render_markdown(f"```py\n{code} = 1\n\nif a:\n    b\n```", 40, Ink(colour=False))
    assert shown == f"  {code} = 1\n\n  if a:\n      b"


@pytest.mark.parametrize("text", ["```\nabc\n```", "~~~~ py x\nabc\n~~~~", "```py\nabc", "  ```\nabc\n  ```"])
def test_fences(text):
    assert render_markdown(text, 40, Ink(colour=False)) == "  abc"


def test_code_in_a_list_is_not_cut():
    shown = render_markdown("- a\n  ```\n  " + "x" * 90 + "\n  ```", 40, Ink(colour=False))
    assert shown.count("x") == 90


def test_styles():
    text = "# Title\n\nIt is **bold** and `code`.\n\n```py\ndef f(): return 'a'\n```"
    coloured, bare = render_document(text, 60, Ink()), render_document(text, 60, Ink(colour=False))
    assert re.search(r"\x1b\[[\d;]*36m", coloured)
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3|4|9)\d", bare)
    assert "\x1b" not in render_document(text, 60, Ink(plain=True))
    assert "48;" not in coloured  # no backgrounds: they fit dark windows or light ones, not both
    assert "Title" in bare
