"""Markdown as a terminal shows it, rendered by rich."""

import io
import re
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from codemill.agent.terminal.ink import Ink
from codemill.agent.terminal.markdown_blocks import BlockSplitter
from codemill.agent.terminal.safe_text import width

if TYPE_CHECKING:
    from rich.console import Console

STYLE = re.compile(r"\x1b\[[\d;]*m")
FENCED = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n]*\n(.*?)(?:\n {0,3}\1[`~]*[ \t]*)?", re.DOTALL)
MAX_WIDTH = 100  # columns; longer lines are hard to read


def render_markdown(text: str, columns: int, ink: Ink) -> str:
    """One block of safe Markdown as text with styles. Code is not wrapped, so that it can be copied."""
    if ink.plain:
        return text.strip("\n")
    code = FENCED.fullmatch(text.strip("\n"))
    if code:
        return _render_code(code[3], code[2], ink)
    console = _console(min(columns, MAX_WIDTH), ink)
    with console.capture() as captured:
        console.print(_markdown_class()(text, code_theme=_code_theme(), hyperlinks=False))
    return _without_padding(captured.get())


def render_document(text: str, columns: int, ink: Ink) -> str:
    """Safe Markdown of several blocks, with one empty line between them, as it looks when it is streamed."""
    splitter = BlockSplitter()
    blocks = [*splitter.feed(text), *splitter.finish()]
    shown = (render_markdown(block, columns, ink) for block in blocks)
    # Some blocks, such as definitions of links, show nothing.
    return "\n\n".join(text for text in shown if text.strip())


def _render_code(code: str, language: str, ink: Ink) -> str:
    """Code in lines as long as they are: the terminal wraps them, so that they are copied whole."""
    from rich.syntax import Syntax

    widest = max(width(line) for line in code.split("\n")) + 1
    console = _console(widest, ink)
    with console.capture() as captured:
        console.print(Syntax(code, language or "text", theme=_code_theme()).highlight(code), soft_wrap=True, end="")
    lines = _without_padding(captured.get()).split("\n")
    return "\n".join(f"  {line}" if line else "" for line in lines)


def _without_padding(text: str) -> str:
    """Without spaces at the ends of lines, and without empty lines around it."""
    lines = ["" if not STYLE.sub("", line).strip() else line.rstrip() for line in text.split("\n")]
    return "\n".join(lines).strip("\n")


def _console(columns: int, ink: Ink) -> "Console":
    from rich.console import Console
    from rich.theme import Theme

    theme = Theme(
        {
            "markdown.code": "cyan",
            "markdown.block_quote": "dim",
            "markdown.h1": "bold",
            "markdown.h2": "bold",
            "markdown.h3": "bold",
            "markdown.h4": "bold",
            "markdown.item.bullet": "dim",
            "markdown.item.number": "dim",
            "markdown.hr": "dim",
            "markdown.link": "default",
            "markdown.link_url": "dim underline",
            "markdown.list": "default",
            "markdown.table.header": "bold",
            "markdown.table.border": "dim",
        }
    )
    return Console(
        file=io.StringIO(),
        width=columns,
        force_terminal=True,
        color_system="standard" if ink.colour else None,
        no_color=not ink.colour,
        highlight=False,
        emoji=False,
        theme=theme,
        legacy_windows=False,
        _environ={},
    )


@cache
def _markdown_class() -> Any:
    """rich's Markdown with plain headings and code without a background."""
    from rich.markdown import CodeBlock, Heading, Markdown
    from rich.syntax import Syntax
    from rich.text import Text

    class PlainHeading(Heading):
        def __rich_console__(self, console: Any, options: Any) -> Any:
            self.text.justify = "left"
            yield self.text

    class PlainCode(CodeBlock):
        def __rich_console__(self, console: Any, options: Any) -> Any:
            code = str(self.text).rstrip()
            lines = Syntax(code, self.lexer_name, theme=self.theme).highlight(code)
            lines.rstrip()
            for line in lines.split("\n"):
                yield Text("  ", overflow="fold").append_text(line)

    class AgentMarkdown(Markdown):
        elements: ClassVar[dict[str, Any]] = {
            **Markdown.elements,
            "heading_open": PlainHeading,
            "fence": PlainCode,
            "code_block": PlainCode,
        }

    return AgentMarkdown


@cache
def _code_theme() -> Any:
    """Colours of the terminal's palette that can be read on light and on dark."""
    from rich.style import Style
    from rich.syntax import ANSISyntaxTheme, Comment, Keyword, Name, Number, String

    return ANSISyntaxTheme(
        {
            Comment: Style(dim=True),
            Keyword: Style(color="blue"),
            Keyword.Constant: Style(color="cyan"),
            Name.Function: Style(bold=True),
            Name.Class: Style(bold=True),
            Number: Style(color="cyan"),
            String: Style(color="green"),
        }
    )
