"""What the text of a request must look like: a JSON schema, a regex, one of some texts, a grammar, or tool calls.

No torch and no llguidance here: a request is checked before anything heavy is loaded.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args

from codemill.chat.messages import normalize_tools
from codemill.engine.json_schema import check_types
from codemill.errors import UsageError

ToolCallStyle = Literal["qwen3_coder", "hermes"]


@dataclass(frozen=True)
class ToolCallSpec:
    """Which tools may be called, and how the calls are written. Raises UsageError naming the field that is wrong.

    tools: tool definitions as in the OpenAI API. choice: "auto" for text and then calls, if any; "required" for at
    least one call; the name of a function for exactly one call of that. parallel: whether there may be several calls.
    answer: with "auto" a JSON schema of the text that comes instead of calls; None for any text, also before calls.
    """

    tools: Sequence[Mapping[str, Any]]
    choice: str = "auto"
    style: ToolCallStyle = "qwen3_coder"
    parallel: bool = True
    answer: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.style not in get_args(ToolCallStyle):
            raise UsageError(f"style = {self.style!r}: must be one of {', '.join(get_args(ToolCallStyle))}")
        if self.choice == "required" and not self.functions:
            raise UsageError("tool choice 'required': there are no tools; give some")
        if self.choice not in ("auto", "required", *self.names):
            raise UsageError(f"tool choice {self.choice!r}: must be auto, required, or one of {', '.join(self.names)}")

    @cached_property
    def functions(self) -> tuple[Mapping[str, Any], ...]:
        """The `function` part of each tool; of several tools with one name the last."""
        found = {tool["function"]["name"]: tool["function"] for tool in normalize_tools(list(self.tools))}
        return tuple(found.values())

    @property
    def names(self) -> list[str]:
        """The functions' names."""
        return [function["name"] for function in self.functions]


@dataclass(frozen=True)
class StructuredOutput:
    """What the output must match. Give exactly one; raises UsageError naming the field that is wrong.

    json_schema: a JSON schema, as a mapping, a boolean or JSON text. Properties come in the schema's order. Keywords
        that a grammar cannot express (`not`, `if`, `uniqueItems`, `format` and `pattern` of unknown kinds, ...) are
        ignored, and `oneOf` is treated as `anyOf`: the output may then violate these.
    json_object: any JSON object.
    regex: a regular expression that the whole output matches; Rust's syntax, without look-around and back-references.
    choice: the output is one of these texts.
    lark: a Lark grammar with a rule `start`, in llguidance's dialect.
    tools: tool calls; see `for_tools`.
    """

    json_schema: Mapping[str, Any] | str | bool | None = None
    json_object: bool = False
    regex: str | None = None
    choice: Sequence[str] | None = None
    lark: str | None = None
    tools: ToolCallSpec | None = None

    @classmethod
    def for_tools(
        cls,
        tools: Sequence[Mapping[str, Any]],
        choice: str = "auto",
        style: ToolCallStyle = "qwen3_coder",
        parallel: bool = True,
        answer: Mapping[str, Any] | None = None,
    ) -> "StructuredOutput":
        """Calls of these tools, as `ToolCallSpec` says; what comes out is for `ToolCallParser`."""
        return cls(tools=ToolCallSpec(tools, choice, style, parallel, answer))

    def __post_init__(self) -> None:
        names = [field.name for field in fields(self)]
        given = [
            name for name in names if getattr(self, name) is not None and (name != "json_object" or self.json_object)
        ]
        if len(given) != 1:
            raise UsageError(f"structured output: give exactly one of {', '.join(names)}, not {given or 'none'}")
        self._check_json()
        self._check_text()

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def is_json(self) -> bool:
        """Whether there is a `schema`."""
        return self.json_object or self.json_schema is not None

    @cached_property
    def schema(self) -> Mapping[str, Any]:
        """The JSON schema of `json_schema` or `json_object`."""
        if self.json_object:
            return {"type": "object"}
        schema = self.json_schema
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"json_schema: not valid JSON: {error}") from error
        if schema is False:
            raise UsageError("json_schema = False: no output satisfies it")
        if schema is not True and not isinstance(schema, Mapping):
            raise UsageError(f"json_schema: must be an object or a boolean, found {type(schema).__name__}")
        return {} if schema is True else schema

    @cached_property
    def key(self) -> str:
        """The same for two of these that mean the same output, also across processes."""
        return hashlib.sha256(json.dumps(self._content).encode()).hexdigest()

    @property
    def _content(self) -> list[Any]:
        if self.tools is not None:
            spec = self.tools
            shapes = [[function["name"], function.get("parameters")] for function in spec.functions]
            return ["tools", shapes, spec.choice, spec.style, spec.parallel, spec.answer]
        if self.is_json:
            return ["json", self.schema]
        if self.choice is not None:
            return ["choice", list(self.choice)]
        return ["regex", self.regex] if self.regex is not None else ["lark", self.lark]

    def _check_json(self) -> None:
        if not isinstance(self.json_object, bool):
            raise UsageError(f"json_object = {self.json_object!r}: must be True or False")
        if self.json_schema is not None:
            try:
                json.dumps(self.schema, allow_nan=False)
                check_types(self.schema)
            except (TypeError, ValueError, RecursionError) as error:
                raise UsageError(f"json_schema: not JSON: {error}") from error

    def _check_text(self) -> None:
        for name in ("regex", "lark"):
            if not isinstance(getattr(self, name), str | None):
                raise UsageError(f"{name} = {getattr(self, name)!r}: must be text")
        if self.choice is not None:
            is_list = isinstance(self.choice, Sequence) and not isinstance(self.choice, (str, bytes))
            if not is_list or not self.choice or not all(isinstance(text, str) for text in self.choice):
                raise UsageError(f"choice = {self.choice!r}: must be a list of at least one text")
        if not isinstance(self.tools, ToolCallSpec | None):
            raise UsageError("tools: use StructuredOutput.for_tools(tools)")
