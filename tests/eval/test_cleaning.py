"""What of an answer is the program: base continuations, chat answers, and text that no model should write."""

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.eval.cleaning import (
    answered_function,
    answered_program,
    continued_function,
    continued_program,
    cut_at_first,
    prelude,
    tidy,
)
from codemill.eval.python_text import defines, indented, top_level, top_level_statements
from codemill.eval.suite import Answer

PROMPT = 'import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef area(r: float) -> float:\n    """ The area. """\n'
HEAD = "import math\n\n\ndef half(x):\n    return x / 2\n\n\n"


NESTED = "    def inner(y):\n        return y\n\n    return inner(1)\n"
DOUBLE = '    s = """\ndef f():\nprint(1)\nassert 1\n"""\n    return s\n'
SINGLE = "    s = '''\nit's \\''' \"\"\"\n'''\n    return s\n"
WHOLE = "def area(r):\n    return math.pi * r * r\n"
WITH_FENCES = 'def area(r):\n    """\n```\narea(1)\n```\n    """\n    return 1\n'


def continued(text: str) -> Answer:
    return continued_function(text, PROMPT, "area")


def answered(text: str) -> Answer:
    return answered_function(text, PROMPT, "area")


def fenced(code: str, language: str = "python") -> str:
    return f"Sure, here it is:\n\n```{language}\n{code}\n```\nIt works."


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ("", ""),
        ("    return 1", "    return 1"),
        ("    return 1\n\nprint(area(1))\n", "    return 1\n\n"),
        ("    return 1\n\n\ndef other():\n    pass\n", "    return 1\n\n\n"),
        ("    return 1\n@cache\ndef other():\n    pass\n", "    return 1\n"),
        ("    return 1\nclass A:\n    x = 1\n", "    return 1\n"),
        ("    return 1\nx = 2\n", "    return 1\n"),
        ("    return 1\nif __name__ == '__main__':\n    area(1)\n", "    return 1\n"),
        ("    return 1\n```\nThis returns 1.", "    return 1\n"),
        ("    return 1<|endoftext|>import os", "    return 1"),
        ("    return 1\r\n\r\ndef other():\r\n", "    return 1\n\n"),
        (f"{NESTED}assert 1", NESTED),
        ("    x = 1\n# at column 0\n    return x\nfoo()", "    x = 1\n# at column 0\n    return x\n"),
        (f"{DOUBLE}foo()", DOUBLE),
        (f"{SINGLE}foo()", SINGLE),
        ("    s = 'a\\\nb'\n    return s\nfoo()", "    s = 'a\\\nb'\n    return s\n"),
        ('    s = \'#"\' # \'"""\n    return s\nfoo()', '    s = \'#"\' # \'"""\n    return s\n'),
        ("    return [\n1,\n2,\n]\nfoo()", "    return [\n1,\n2,\n]\n"),
        ("    x = 1 + \\\n2\n    return x\nfoo()", "    x = 1 + \\\n2\n    return x\n"),
        ("    return (1\ndef other():\n    pass", "    return (1\n"),  # a bracket that is never closed
        ("    if x:\n        y\n    else:\n        z\nelse_ = 3", "    if x:\n        y\n    else:\n        z\n"),
        ("\treturn 1\nfoo()", "\treturn 1\n"),
        ("    s = '''\n\ndef f():", "    s = '''\n\ndef f():"),  # a string that is never closed
    ],
)
def test_a_continuation_ends_before_the_first_statement_after_the_function(raw: str, kept: str) -> None:
    assert continued(raw) == Answer(kept)


def test_a_continuation_that_begins_the_function_anew_is_the_whole() -> None:
    assert continued("def area(r):\n    return 3\n\nprint(area(1))\n") == Answer(
        f"{HEAD}\ndef area(r):\n    return 3\n\n", whole=True
    )
    assert continued("```python\ndef area(r):\n    return 3\n```") == Answer(
        f"{HEAD}\ndef area(r):\n    return 3\n", whole=True
    )


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (fenced(WHOLE), WHOLE + "\n"),
        (fenced(WHOLE, ""), WHOLE + "\n"),
        (fenced(WHOLE, "Python"), WHOLE + "\n"),
        (fenced(WHOLE).replace("```", "~~~"), WHOLE + "\n"),
        (fenced(WHOLE).replace("\n", "\r\n"), WHOLE + "\n"),
        (f"```python\n{WHOLE}", WHOLE),  # cut short
        (f"{WHOLE}```\nand so on", WHOLE),  # the prompt opened the fence
        (WHOLE, WHOLE),
        (f"```python\n{WHOLE.rstrip()}```\nDone.", WHOLE.rstrip()),
        (f"Here: ```python\n{WHOLE}```", WHOLE),
        (f"1. So:\n\n   ```python\n   {WHOLE.strip().replace(chr(10), chr(10) + '   ')}\n   ```\n2. Done", WHOLE),
        (f"```bash\npip install x\n```\nthen\n```python\n{WHOLE}```\nand\n```python\n{'area(2);' * 9}\n```", WHOLE),
        (f"```python\ndef area(r):\n    ...\n```\nbetter:\n```python\n{WHOLE}```", WHOLE),
        (f"<think>```python\ndef area(r): return 0\n```</think>\n\n```python\n{WHOLE}```", WHOLE),
        (f"so\n</think>{fenced(WHOLE)}", WHOLE + "\n"),  # the template opened the reasoning
        (f"{WHOLE}\nprint(area(1))\nassert area(1) == 3\nfor i in range(3):\n    area(i)\n", WHOLE + "\n"),
        (f"{WHOLE}\nif __name__ == '__main__':\n    print(area(1))\n", WHOLE + "\n"),
        (f"{WHOLE}\nresult = area(1)\nTWO = 2\n", WHOLE + "\nTWO = 2\n"),
        (f"{WHOLE}\narea = cache(area)\n", WHOLE + "\narea = cache(area)\n"),
        (f"Use this (of course:\n\nimport os\nNote that:\n{WHOLE}\nThis isn't hard.\n", f"import os\n{WHOLE}\n"),
        ("```python\nfrom __future__ import annotations\nx = 1\n" + WHOLE + "```", "x = 1\n" + WHOLE),
        ("```python\nasync def area(r):\n    return 1\n```", "async def area(r):\n    return 1\n"),
        ("```python\narea = lambda r: 3 * r\n```", "area = lambda r: 3 * r\n"),
        (f"```python\n{WITH_FENCES}```\nok", WITH_FENCES),
    ],
)
def test_the_whole_function_from_a_chat_answer(raw: str, code: str) -> None:
    """It comes with the prompt's imports and helpers."""
    answer = answered(raw)
    future = "from __future__ import annotations\n" if "__future__" in raw else ""
    assert answer.whole
    assert answer.text == f"{future}{HEAD}\n{code}"


@pytest.mark.parametrize(
    ("code", "body"),
    [
        ("return 1", "    return 1\n"),
        ("    return 1", "    return 1\n"),
        ("  x = 1\n  return x", "    x = 1\n    return x\n"),
        ("x = 1\nreturn x", "    x = 1\n    return x\n"),
        ("x = 1\n    return x", "    x = 1\n    return x\n"),  # the first line lost its white space
        ("if r:\n        return 1\n    return 2", "    if r:\n        return 1\n    return 2\n"),
        ("if r:\n        return 1", "    if r:\n        return 1\n"),
        ("if r:\n    return 1\nreturn 2", "    if r:\n        return 1\n    return 2\n"),
        ("\tif r:\n\t\treturn 1", "    if r:\n        return 1\n"),
        ("def inner(y):\n    return y\nreturn inner(1)", "    def inner(y):\n        return y\n    return inner(1)\n"),
        ('s = """\nkept\n"""\nreturn s', '    s = """\nkept\n"""\n    return s\n'),
        ("        return 1", "    return 1\n"),
    ],
)
def test_only_the_body_from_a_chat_answer(code: str, body: str) -> None:
    assert answered(fenced(code)) == Answer(body)


def test_a_body_before_a_closing_fence() -> None:
    for after in ("", "\n", "\nThis returns one."):
        assert answered(f"    x = 1\n    return x\n```{after}") == Answer("    x = 1\n    return x\n")


def test_an_answer_without_code_is_no_program() -> None:
    assert answered("I cannot help with that.").text.strip() == "I cannot help with that."
    assert answered("<think>never closed ```python\ndef area(r): return 1\n```") == Answer("")
    assert answered("") == Answer("")


def test_a_function_of_another_name_stays_what_it_is() -> None:
    answer = answered(fenced("def surface(r):\n    return 1"))
    assert answer.whole
    assert "def surface(r):" in answer.text


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ("def f():\n    return 1\n\nassert f() == 1\n", "def f():\n    return 1\n\n"),
        ("def f():\n    return 1\nprint(f())", "def f():\n    return 1\n"),
        ('def f():\n    return 1\n"""\nNext task\n"""\n', "def f():\n    return 1\n"),
        ("def f():\n    return 1\n```\n", "def f():\n    return 1\n"),
        (f"import re\nX = 1\n{WHOLE}", f"import re\nX = 1\n{WHOLE}"),
        (f"def f():\n{DOUBLE}    assert 2\nif __name__ == 'x': f()", f"def f():\n{DOUBLE}    assert 2\n"),
    ],
)
def test_a_program_after_a_docstring_ends_before_its_first_use(raw: str, kept: str) -> None:
    assert continued_program(raw) == kept


def test_a_program_from_a_chat_answer() -> None:
    code = "import re\nclass A:\n    pass\ndef f():\n    return A()\n"
    assert answered_program(fenced(f"{code}print(f())"), ["f", "g"]) == code
    assert answered_program(fenced("print(1)"), ["f"]) == "print(1)\n"


def test_the_earliest_stop_string_counts() -> None:
    assert cut_at_first("abcd", ("d", "b", "x")) == "a"
    assert cut_at_first("abcd", ()) == "abcd"


def test_tidy_keeps_think_tags_that_are_part_of_the_code() -> None:
    assert tidy('x = "<think>a</think>"\n') == 'x = "<think>a</think>"\n'


def test_the_prelude_is_what_stands_before_the_function() -> None:
    assert prelude(PROMPT, "area") == HEAD
    assert prelude(PROMPT, "half") == "import math\n\n\n"
    assert prelude(PROMPT, "nothing") == ""


def test_statements_joined_are_the_text() -> None:
    text = "a = (1,\n2)\n# c\nif a:\n    b\nelse:\n    c\n\n\nd\n"
    assert list(top_level_statements(text)) == ["a = (1,\n2)\n# c\n", "if a:\n    b\nelse:\n    c\n\n\n", "d\n"]
    assert [text[place] for place in top_level(text)] == ["a", "i", "d"]


def test_defines() -> None:
    assert defines("x\ndef f(a): pass", "f")
    assert defines("f: int = 1", "f")
    assert not defines("  def f(a): pass\nf(1)\nf == 2\ndef ff(): pass", "f")


Cleaner = Callable[[str], object]
CLEANERS: dict[str, Cleaner] = {
    "continued_function": continued,
    "answered_function": answered,
    "continued_program": continued_program,
    "answered_program": lambda raw: answered_program(raw, ["area"]),
}
PIECES = [
    *("```", "```python\n", "~~~", '"""', "'''", '"', "'", "\\", "\n", "\r\n", "    ", "\t", "(", ")", "[", "}", "#"),
    *("def area(r):", "return 1", "class A:", "<think>", "</think>", "@", "import os", "else:", "x = 1", ":"),
    *("<|endoftext|>", "é", "\0", "\ud800"),
]


@pytest.mark.parametrize("name", CLEANERS)
@given(st.one_of(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.text(max_size=80)))
def test_any_text_can_be_cleaned(name: str, raw: str) -> None:
    CLEANERS[name](raw)


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_scanning_loses_nothing(text: str) -> None:
    assert "".join(top_level_statements(text)) == text
    assert indented(text).split() == text.split()


REPEATED = [
    *PIECES,
    "()",
    "( ",
    '"""\n```\n',
    "```x\n",
    "a\\\n",
    "  x\n",
    "area(",
    "a, ",
    "x: ",
    "def area(r):\n  return 1\n",
]


@pytest.mark.parametrize("name", CLEANERS)
def test_the_time_grows_with_the_length(name: str) -> None:
    """Were it with the square of the length, this would take minutes."""
    size, start = 60_000, time.process_time()
    for piece in REPEATED:
        for fence in ("", "```python\n"):
            CLEANERS[name](fence + piece * (size // len(piece)))
    assert time.process_time() - start < 20


@pytest.mark.slow
@pytest.mark.parametrize("name", CLEANERS)
@pytest.mark.parametrize("piece", ["\n", "()", "```x\n", "  x\n", "area(", '"""\n```\n'])
def test_ten_megabytes(name: str, piece: str) -> None:
    size, start = 10_000_000, time.process_time()
    CLEANERS[name](piece * (size // len(piece)))
    CLEANERS[name]("```python\n" + piece * (size // len(piece)))
    assert time.process_time() - start < 60
