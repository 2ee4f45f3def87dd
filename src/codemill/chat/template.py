"""A checkpoint's own chat template, run in a jinja2 sandbox, and the marks that tell its control tokens from text.

A template comes from a checkpoint, so it is untrusted code. The sandbox keeps it from Python's internals and from the
quickest ways to eat memory; it does not bound the time of nested loops.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from codemill.errors import CodemillError, UsageError

if TYPE_CHECKING:
    from jinja2 import Environment, Template, nodes


class ControlMarks:
    """Placeholders for control tokens that no text can contain: they hold a secret made anew in every process."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = sorted(tokens, key=len, reverse=True)
        self._number = {token: i for i, token in enumerate(self._tokens)}
        self._secret = secrets.token_hex(8)
        self._control = re.compile("|".join(map(re.escape, self._tokens)) or "(?!)")
        self._placeholder = re.compile(f"\ue000{self._secret}:([0-9]+)\ue001")

    def mark(self, text: str) -> str:
        """`text`, written by the chat format, with its control tokens as placeholders."""
        return self._control.sub(lambda match: f"\ue000{self._secret}:{self._number[match[0]]}\ue001", text)

    def unmark(self, text: str) -> str:
        """The text as it reads: every placeholder is its control token again."""
        return self._placeholder.sub(lambda match: self._tokens[int(match[1])], text)

    def split(self, marked: str) -> Iterator[tuple[str, str | None]]:
        """Pairs of plain text and the control token after it; the last pair has None."""
        parts = self._placeholder.split(marked)
        for text, number in zip(parts[::2], [*parts[1::2], None], strict=True):
            yield text, None if number is None else self._tokens[int(number)]


class ChatTemplate:
    """One jinja chat template, compiled when first used."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._marked: dict[ControlMarks, Template] = {}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        marks: ControlMarks | None = None,
        **variables: Any,
    ) -> str:
        """The conversation as text; with `marks`, the template's own control tokens are marked.

        Raises UsageError for what the template rejects itself, CodemillError if it fails or asks what it may not.
        """
        values = {"messages": messages, "tools": tools or None, "documents": None, **variables}
        values["add_generation_prompt"] = add_generation_prompt
        plain = _guarded(lambda: self._plain.render(values))
        if marks is None:
            return plain
        template = self._marked_template(marks)
        marked = _guarded(lambda: template.render(values))
        if marks.unmark(marked) != marks.unmark(plain):
            raise CodemillError("chat template: its own control tokens cannot be told from those in the messages")
        return marked

    @cached_property
    def _plain(self) -> "Template":
        return _guarded(lambda: _environment().from_string(self._source))

    def _marked_template(self, marks: ControlMarks) -> "Template":
        if marks not in self._marked:
            self._marked[marks] = _guarded(lambda: _marked_template(self._source, marks))
        return self._marked[marks]


def _guarded(work: Callable[[], Any]) -> Any:
    """What `work` returns; whatever a hostile or broken template can raise becomes one line."""
    from jinja2 import TemplateError

    failures = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
    try:
        return work()
    except (*failures, MemoryError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CodemillError(f"chat template: {reason}") from error


def _environment() -> "Environment":
    """The environment that templates of Hugging Face checkpoints are written for (as in `transformers`)."""
    from codemill.chat.template_sandbox import ChatSandbox

    return ChatSandbox()


def _marked_template(source: str, marks: ControlMarks) -> "Template":
    environment = _environment()
    tree = environment.parse(source)
    _mark_literals(tree, marks, written=True)
    code = environment.compile(tree)
    return environment.template_class.from_code(environment, code, environment.make_globals(None), None)


def _mark_literals(node: "nodes.Node", marks: ControlMarks, written: bool) -> None:
    """Mark the control tokens in the literals that a template writes; those it only looks for stay as they are."""
    from jinja2 import nodes

    if isinstance(node, nodes.TemplateData):
        node.data = marks.mark(node.data)
    elif isinstance(node, nodes.Const) and isinstance(node.value, str) and written:
        node.value = marks.mark(node.value)
    looked_for = _looked_for(node)
    for field, child in _children(node):
        _mark_literals(child, marks, written and field not in looked_for)


def _children(node: "nodes.Node") -> Iterator[tuple[str, "nodes.Node"]]:
    from jinja2 import nodes

    for field, value in node.iter_fields():
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, nodes.Node):
                yield field, child


def _looked_for(node: "nodes.Node") -> frozenset[str]:
    """The fields of a node whose literals are compared or looked up, not written."""
    from jinja2 import nodes

    if isinstance(node, nodes.Compare | nodes.Test):
        return frozenset(node.fields)
    if isinstance(node, nodes.If | nodes.CondExpr):
        return frozenset({"test"})
    if isinstance(node, nodes.Getitem):
        return frozenset({"arg"})
    if isinstance(node, nodes.Pair):
        return frozenset({"key"})
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        return frozenset({"args", "kwargs"})
    if isinstance(node, nodes.Filter) and node.name not in ("default", "d", "join"):
        return frozenset({"args", "kwargs"})
    return frozenset()


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a prompt: no HTML escapes, characters as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    """What a template calls to reject a conversation."""
    raise UsageError(f"chat template: {(str(message).splitlines() or ['rejected'])[0]}")
