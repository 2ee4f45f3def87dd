"""The page's Markdown beside markdown-it, which follows CommonMark, and the modules that need no browser."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
WEB = ROOT / "src" / "codemill" / "server" / "web"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
ORACLE = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
BLOCK_TAG = r"</?(?:p|ul|ol|li|blockquote|h\d|hr|pre|table|thead|tbody|tr|th|td)\b[^>]*>"
ToHtml = Callable[[list[str]], list[str]]

EXAMPLES = [
    "# Title #\n\nSetext\n===\n\n***\n- - -\n",
    "a **b *c* d** `x` ***both*** ~~no~~ snake_case_x __init__ 2*3*4 * not * this",
    "**bold**text, **note:**text, *(a)*b, _a_b, 'a'*b*",
    "`` a`b `` `c``d` `unclosed",
    '[l](http://a.b/c_(d)) [t](<x y> "title") [n](no link) ![alt *e*](i.png) [a [b](c) d](e)',
    "<https://a.b/c?d=e> <me@example.com> <b>no html</b> <script>alert(1)</script> &amp; &lt; &#65; &nope;",
    "line one  \nline two\\\nline three\nline four",
    "1. one\n2. two\n   - nested\n     continued\n\n     paragraph\n3. three\n\n5) other\n",
    "- a\n- b\n\n- loose\n  ```py\n  x = 1\n\n  y\n  ```\n- c\n```\nout\n```\n",
    "- \n- a\n*\n\n+ b\n\n\n      code\n",
    "> quote\nlazy\n> - list\n> ```\n> code\n\nafter\n\n> > nested\n> # heading\n",
    "```python title=x\n  indented\n\ttab\n```\n~~~\n```\n~~~\n````\n```\n````\n``` not `a fence\n",
    "    indented code\n\n      more\n\npara\n    not code\n",
    "| a | b |\n|:-:|--:|\n| `x\\|y` | **z** |\n| short |\n| one | two | three |\n\n| no | table |\n",
    "para\n| a |\n|---|\n| b |\n# heading\n",
    "* * *\n*emph\nover lines*\n\\*not\\* \\`code\\`\n",
    "14. starts late\n15. goes on\n",
    "para\n1. interrupts\n\npara\n2. does not\n",
    "unclosed\n\n```js\nlet a = 1;\n",
]


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's scripts where node takes them for modules."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    folder = tmp_path_factory.mktemp("web")
    for script in WEB.glob("*.js"):
        shutil.copy(script, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


@pytest.fixture(scope="module")
def to_html(modules: Path) -> ToHtml:
    def convert(texts: list[str]) -> list[str]:
        source = modules / "texts.json"
        source.write_text(json.dumps(texts))
        command = ["node", str(HERE / "to_html.mjs"), str(modules), str(source)]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return convert


def canonical(html: str) -> str:
    """Without what differs on purpose: languages, titles, white space between blocks, the names of equal tags."""
    html = re.sub(r'<code class="[^"]*">', "<code>", html)
    html = html.replace(" />", ">").replace("<s>", "<del>").replace("</s>", "</del>")
    html = re.sub(
        r' style="text-align:(\w+)"', lambda m: {"left": "", "right": " end", "center": " center"}[m[1]], html
    )
    html = re.sub(r' title="[^"]*"', "", html)
    html = re.sub(r"\n*</code></pre>", "</code></pre>", html)
    return re.sub(rf"\n*({BLOCK_TAG})\n*", r"\1", html).strip()


@pytest.mark.parametrize("text", EXAMPLES)
def test_it_is_what_commonmark_says(to_html: ToHtml, text: str) -> None:
    expected = canonical(ORACLE.render(text))
    assert canonical(to_html([text])[0]) == expected.replace("x%20y", "x y")


def test_our_own_documentation_reads_the_same(to_html: ToHtml) -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    for page, text, html in zip(PAGES, texts, to_html(texts), strict=True):
        assert canonical(html) == canonical(ORACLE.render(text)), page


def test_modules_that_need_no_browser(modules: Path) -> None:
    for test in HERE.glob("*.test.mjs"):
        shutil.copy(test, modules)
    done = subprocess.run(["node", "--test", str(modules)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
