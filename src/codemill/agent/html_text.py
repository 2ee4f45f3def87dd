"""HTML as plain text, with as much of Markdown as tells what is what."""

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from urllib.parse import urljoin

SKIPPED = frozenset({"script", "style", "noscript", "template", "svg", "iframe", "object", "head", "nav", "form"})
BLOCKS = frozenset(
    {"p", "div", "section", "article", "header", "footer", "main", "ul", "ol", "dl", "dt", "dd", "table", "tr", "aside"}
    | {"blockquote", "figure", "hr", "details", "summary", "address", "fieldset", "body"}
)
HEADINGS = {f"h{level}": "#" * level for level in range(1, 7)}
VOID = frozenset({"br", "hr", "img", "input", "meta", "link", "source", "wbr", "col", "area", "base", "embed", "track"})


def html_text(html: str, base: str = "") -> str:
    """The text of a page; links as `[text](address)`. base: the address that relative ones begin from."""
    parser = _Parser(base)
    parser.feed(html)
    parser.close()
    return parser.text


class _Parser(HTMLParser):
    def __init__(self, base: str) -> None:
        super().__init__(convert_charrefs=True)
        self._base = base
        self._parts: list[str] = []
        self._skipped: list[str] = []  # open elements of which nothing is shown
        self._num_pre = 0
        self._links: list[str] = []
        self._title: list[str] = []
        self._in_title = False

    @property
    def text(self) -> str:
        title = " ".join("".join(self._title).split())
        body = "".join(self._parts)
        lines = [line.rstrip() for line in body.split("\n")]
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
        return f"{title}\n\n{text}".strip() if title and title not in text[:500] else text

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self._in_title = tag == "title"
        if tag in VOID:
            self._void(tag, dict(attrs))
        elif self._skipped or tag in SKIPPED:
            if tag in SKIPPED:
                self._skipped.append(tag)
        elif tag == "pre":
            self._num_pre += 1
            self._parts.append("\n\n```\n")
        elif tag in HEADINGS:
            self._parts.append(f"\n\n{HEADINGS[tag]} ")
        elif tag == "li":
            self._parts.append("\n- ")
        elif tag in ("td", "th"):
            self._parts.append(" | ")
        elif tag == "a":
            self._links.append(dict(attrs).get("href") or "")
            self._parts.append("[" if self._links[-1] else "")
        elif tag in BLOCKS:
            self._parts.append("\n" if tag == "tr" else "\n\n")
        elif tag == "code" and not self._num_pre:
            self._parts.append("`")

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False
        if tag in self._skipped:
            del self._skipped[self._skipped.index(tag) :]
        elif self._skipped:
            return
        elif tag == "pre" and self._num_pre:
            self._num_pre -= 1
            self._parts.append("\n```\n\n")
        elif tag in HEADINGS or tag in BLOCKS:
            self._parts.append("\n" if tag == "tr" else "\n\n")
        elif tag == "a" and self._links:
            address = self._links.pop()
            self._parts.append(f"]({urljoin(self._base, address)})" if address else "")
        elif tag == "code" and not self._num_pre:
            self._parts.append("`")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self._title.append(data)
        elif not self._skipped:
            self._parts.append(data if self._num_pre else self._folded(data))

    def _folded(self, data: str) -> str:
        """White space as a browser shows it: at most one space, none at the beginning of a line."""
        text = re.sub(r"\s+", " ", data)
        is_at_start = not self._parts or self._parts[-1].endswith(("\n", " "))
        return text.lstrip() if is_at_start else text

    def _void(self, tag: str, attributes: dict[str, str | None]) -> None:
        if self._skipped:
            return
        if tag == "br":
            self._parts.append("\n")
        elif tag == "hr":
            self._parts.append("\n\n---\n\n")
        elif tag == "img" and attributes.get("alt"):
            self._parts.append(f"[image: {attributes['alt']}]")
