"""The form that a body asks of the text: OpenAI's `response_format`, and vLLM's and llama.cpp's fields for the same."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from codemill.engine.structured_output import StructuredOutput
from codemill.errors import UsageError
from codemill.server.json_list import JsonList


class OutputFormBody(BaseModel):
    """Fields of which at most one asks for something."""

    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: JsonList[str] | None = None
    guided_grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None

    @property
    def output_form(self) -> StructuredOutput | None:
        """What is asked for, None for any text. Raises UsageError if that is more than one thing, or none that is."""
        asked = {**_of_vllm(self.structured_outputs or {}), **self._own()}
        asked = {name: value for name, value in asked.items() if value is not None}
        response_format = response_form(self.response_format)
        if response_format is not None:
            return response_format
        return StructuredOutput(**asked) if asked else None

    def _own(self) -> dict[str, Any]:
        lark = self.guided_grammar if self.guided_grammar is not None else self.grammar
        own = {
            "json_schema": self.guided_json if self.guided_json is not None else self.json_schema,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "lark": as_lark(lark),
        }
        return {name: value for name, value in own.items() if value is not None}


def response_form(response_format: Mapping[str, Any] | None) -> StructuredOutput | None:
    """What OpenAI's `response_format` (or the `text.format` of responses) asks for. Raises UsageError."""
    kind = (response_format or {}).get("type", "text")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        schema = response_format.get("schema")  # as llama.cpp takes it
        return StructuredOutput(json_object=True) if schema is None else StructuredOutput(json_schema=schema)
    if kind == "json_schema":
        inner = response_format.get("json_schema", response_format)
        if not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), Mapping | bool):
            raise UsageError("response_format: type json_schema needs json_schema.schema, a JSON schema")
        return StructuredOutput(json_schema=inner["schema"])
    if kind == "regex":
        return StructuredOutput(regex=response_format.get("pattern") or response_format.get("regex"))
    if kind == "grammar":
        return StructuredOutput(lark=as_lark(response_format.get("grammar")))
    raise UsageError(f"response_format: unknown type {kind!r}; use text, json_object, json_schema, regex or grammar")


def as_lark(grammar: Any) -> str | None:
    """A grammar in llguidance's Lark; one in llama.cpp's GBNF, which has `::=`, is translated. Raises UsageError."""
    if grammar is None:
        return None
    if not isinstance(grammar, str):
        raise UsageError("grammar: must be text, in Lark or GBNF")
    if "::=" not in grammar:
        return grammar or None
    try:
        from llguidance.gbnf_to_lark import gbnf_to_lark

        return str(gbnf_to_lark(grammar))
    except ImportError as error:
        raise UsageError("grammar: GBNF needs llguidance, install codemill[serve]") from error
    except Exception as error:
        raise UsageError(f"grammar: no valid GBNF: {error}") from error


def _of_vllm(fields: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's `structured_outputs`."""
    return {
        "json_schema": fields.get("json"),
        "regex": fields.get("regex"),
        "choice": fields.get("choice"),
        "lark": as_lark(fields.get("grammar")),
        "json_object": True if fields.get("json_object") else None,
    }
