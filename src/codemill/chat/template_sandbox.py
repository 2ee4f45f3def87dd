"""The jinja2 environment of chat templates: immutable, sandboxed, with the filters and functions templates expect."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from codemill.chat.template import raise_exception, tojson

MAX_REPEAT = 1_000_000  # characters or items that one `*` may produce
MAX_POWER = 10_000  # bits of what one `**` may produce


class ChatSandbox(ImmutableSandboxedEnvironment):
    """trim_blocks, lstrip_blocks, loop controls, `{% generation %}`, tojson, raise_exception, strftime_now."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
        self.filters["tojson"] = tojson
        self.globals["raise_exception"] = raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = _make_dict
        self.globals["namespace"] = ChatNamespace

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse the products that would fill memory."""
        if operator == "*":
            sizes = [len(side) if hasattr(side, "__len__") else abs(side) for side in (left, right)]
            if any(hasattr(side, "__len__") for side in (left, right)) and sizes[0] * sizes[1] > MAX_REPEAT:
                raise SecurityError(f"a repetition of more than {MAX_REPEAT} characters or items")
        elif isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MAX_POWER:
            raise SecurityError("a power that is too large")
        return super().call_binop(context, operator, left, right)


class GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training masks; in a prompt it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja declares it as an instance variable

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class ChatNamespace(Namespace):
    """jinja's namespace without underscore names, which would reach Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # `self` may be a name the template stores, so it is not named here.
        for name in dict(*args[1:], **kwargs):
            _check_name(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace may not have an attribute {name!r}")


def _make_dict(*args: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
    return dict(*args, **kwargs)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
