"""Fenced code blocks as models write them."""

import pytest

from codemill.eval.fences import blocks


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no code", []),
        ("```python\na\n```", [("python", "a\n")]),
        ("x\n```\na\n```\ny\n~~~js\nb\n~~~\n", [("", "a\n"), ("js", "b\n")]),
        ("````md\n```python\na\n```\n````", [("md", "```python\na\n```\n")]),
        ("~~~\n```\na\n```\n~~~", [("", "```\na\n```\n")]),
        ("```python\na", [("python", "a")]),
        ("```python\na\n```python\nb\n```", [("python", "a\n"), ("python", "b\n")]),
        ("```py\na```\nthen\n```py\nb\n```", [("py", "a"), ("py", "b\n")]),
        ("So: ```C++\na\n```", [("c++", "a\n")]),
        ("  ```c\n  a\n    b\n  ```", [("c", "a\n  b\n")]),
        ("- ```go\n  a\n  ```", [("go", "  a\n")]),
        ("> ```go\n> a\n```", [("go", "> a\n")]),
        ('```{.python title="a"}\na\n```', [("python", "a\n")]),
        ("```python {1,2}\na\n```", [("python", "a\n")]),
        ("use `x` and ```y```", []),
        ('```python\n"""\n```\n"""\na\n```', [("python", '"""\n```\n"""\na\n')]),
        ('```python\n"""\nnever closed\n```\nprose', [("python", '"""\nnever closed\n')]),
        ('```python\n\'"""\'\na\n```\n"""', [("python", '\'"""\'\na\n')]),
        ('```python\n# """\na\n```\n"""', [("python", '# """\na\n')]),
        ('```js\nconst a = """\n```\n"""', [("js", 'const a = """\n')]),
        ("```", [("", "")]),
    ],
)
def test_blocks(text: str, found: list[tuple[str, str]]) -> None:
    assert [(block.language, block.code) for block in blocks(text)] == found


def test_where_a_block_lies() -> None:
    text = "before\n```python\na\n```\nafter"
    (block,) = blocks(text)
    assert text[: block.start] == "before\n"
    assert text[block.end :] == "\nafter"
