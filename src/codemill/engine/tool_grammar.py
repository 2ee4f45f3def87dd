"""The grammar of a message with tool calls, as Lark for llguidance. No torch here.

Text comes first (with `choice="auto"`), then the calls, each on a line after the one before; where the text has a form
of its own, it is this or the calls. Only declared parameters
can be given. What the grammar lets through, `codemill.chat.ToolCallParser` reads as calls of these tools.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from codemill.chat.tool_tags import NAME, Tag
from codemill.engine.json_schema import document
from codemill.engine.structured_output import ToolCallSpec
from codemill.engine.tool_values import SHARED_RULES, value_rules
from codemill.errors import UsageError

Function = Mapping[str, Any]

OPEN, CLOSE = Tag.OPEN_CALL.value, Tag.CLOSE_CALL.value
TEXT = r"/(?s:.+)/ & ~/(?s:.*)(<tool_call>|<function=)(?s:.*)/"
COMBINING = {"$ref", "allOf", "anyOf", "oneOf", "patternProperties"}  # where properties may be declared elsewhere
MAX_PARAMETERS = 64  # llguidance keeps which ones were given in the bits of one number


def tool_grammar(
    spec: ToolCallSpec, control_tokens: Mapping[str, int], eos_token_ids: Collection[int] = frozenset()
) -> str:
    """Lark rules for what `spec` allows; `control_tokens` are those of the vocabulary.

    `<tool_call>` and `</tool_call>` are their control tokens where there are such, else text. Raises UsageError if a
    call is required and none can be written, because no function's name can stand in a tag.
    """
    functions = _callable_functions(spec)
    body = _xml_rules if spec.style == "qwen3_coder" else _hermes_rules
    rules = [rule for i, function in enumerate(functions) for rule in body(i, function)]
    if functions:
        shared = SHARED_RULES if spec.style == "qwen3_coder" else ()
        names = " | ".join(f"f{i}" for i in range(len(functions)))
        rules += [*shared, f'call: "\\n" ({names}) {_tag(CLOSE, control_tokens)}']
    return "\n".join([*_start_rules(spec, bool(functions), control_tokens, eos_token_ids), *rules])


def _callable_functions(spec: ToolCallSpec) -> list[Function]:
    chosen = [function for function in spec.functions if spec.choice in ("auto", "required", function["name"])]
    if spec.style == "hermes":
        return chosen
    found = [function for function in chosen if NAME.fullmatch(function["name"])]
    if not found and spec.choice != "auto":
        raise UsageError(
            f"tool choice {spec.choice!r}: {chosen[0]['name']!r} cannot stand in a tag; rename the function"
        )
    return found


def _start_rules(
    spec: ToolCallSpec, has_calls: bool, control_tokens: Mapping[str, int], eos_token_ids: Collection[int]
) -> list[str]:
    """`start`: text, if it is allowed, and calls; or an answer in a form of its own, without words before calls."""
    first, several = _tag(OPEN, control_tokens), spec.parallel and spec.choice in ("auto", "required")
    more = f'("\\n" {first} call)*' if several else ""
    if spec.choice != "auto":
        return [f"start: {first} call {more}"]
    if spec.answer is not None:
        calls = f" | {first} call {more}" if has_calls else ""
        return [f"start: answer{calls}", f"answer: %json {document(spec.answer)}"]
    others = set(control_tokens.values()) - {control_tokens.get(OPEN), control_tokens.get(CLOSE), *eos_token_ids}
    control = f"<[{','.join(map(str, sorted(others)))}]>"
    rules = [f"text: TEXT?{f' ({control} TEXT?)*' if others else ''}", f"TEXT: {TEXT}"]
    if not has_calls:
        return ["start: text", *rules]
    if _has_tokens(control_tokens):
        return [f"start: text ({first} call {more})?", *rules]
    # Where the tag is text like any other, it has to be the end of the piece of text that it is part of.
    before = f"(TEXT? {control})* " if others else ""
    opening = [f"start: text | {before}opening call {more}", f'opening[lazy]: BEFORE_CALL "{OPEN}"']
    return [*opening, "BEFORE_CALL: TEXT?", *rules]


def _has_tokens(control_tokens: Mapping[str, int]) -> bool:
    return OPEN in control_tokens and CLOSE in control_tokens


def _tag(tag: str, control_tokens: Mapping[str, int]) -> str:
    return f"<[{control_tokens[tag]}]>" if _has_tokens(control_tokens) else json.dumps(tag)


def _parameters(function: Function) -> dict[str, Any]:
    parameters = function.get("parameters")
    return dict(parameters) if isinstance(parameters, Mapping) else {}


def _declared(parameters: Mapping[str, Any]) -> dict[str, Any]:
    declared = parameters.get("properties")
    return dict(declared) if isinstance(declared, Mapping) else {}


def _undeclared(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schemas of the parameters that are required, but not declared."""
    schema = parameters.get("additionalProperties", {})
    return {name: schema for name in _required(parameters) if name not in _declared(parameters)}


def _required(parameters: Mapping[str, Any]) -> list[str]:
    required = parameters.get("required")
    return [str(name) for name in required] if isinstance(required, list) else []


def _ordered(parameters: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The schemas of the parameters that may be given, the required ones first."""
    declared = {**_declared(parameters), **_undeclared(parameters)}
    schemas = {name: declared[name] for name in _required(parameters)} | declared
    allowed = {name: schema for name, schema in schemas.items() if schema is not False}
    return {name: schema if isinstance(schema, Mapping) else {} for name, schema in allowed.items()}


def _xml_rules(i: int, function: Function) -> list[str]:
    """Rule `f{i}`: the function's tags and its parameters in any order, each at most once, the required ones surely."""
    parameters = _parameters(function)
    properties = _ordered(parameters)
    names = [name for name in properties if NAME.fullmatch(name)][:MAX_PARAMETERS]
    opening = json.dumps(f"<function={function['name']}>\n", ensure_ascii=False)
    if not names:
        return [f'f{i}: {opening} "</function>\\n"']
    num_required = sum(name in _required(parameters) for name in names)
    end = f'"</function>\\n"{f" %if is_ones([0:{num_required}])" if num_required else ""}'
    rules = [f"f{i}: {opening} a{i}::0x0"]
    steps = [end]
    for k, name in enumerate(names):
        tag = json.dumps(f"<parameter={name}>\n", ensure_ascii=False)
        steps.append(f"{tag} v{i}_{k} a{i}::set_bit({k}) %if bit_clear({k})")
        rules += value_rules(f"v{i}_{k}", properties[name], parameters)
    return [*rules, f"a{i}::_: " + "\n  | ".join(steps)]


def _hermes_rules(i: int, function: Function) -> list[str]:
    """Rule `f{i}`: the call as a JSON object."""
    parameters = _parameters(function)
    arguments = {**parameters, "type": "object"}
    if not COMBINING & parameters.keys():
        declared = {**_declared(parameters), **_undeclared(parameters)}
        arguments = {"additionalProperties": False, **arguments, "properties": declared}
    schema = {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
    return [f'f{i}: j{i} "\\n"', f"j{i}: %json {document(schema, parameters)}"]
