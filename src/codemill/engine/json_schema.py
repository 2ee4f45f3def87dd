"""JSON schemas as clients send them, made into schemas that llguidance compiles. No torch here."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from codemill.chat.tool_schema import JSON_TYPES
from codemill.errors import UsageError

# White space may stand wherever JSON allows it, at most once each: a model cannot go on with blanks for ever.
OPTIONS = {"lenient": True, "whitespace_pattern": r"[ ]{1,2}|\r?\n(?:[ ]{0,32}|\t{0,8})"}
KNOWN_DRAFTS = re.compile(r"https?://json-schema\.org/(draft-0[467]|draft/20(19-09|20-12))/schema#?")
NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTED_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
NESTED_SCHEMAS = (
    *("items", "additionalItems", "unevaluatedItems", "contains"),
    *("additionalProperties", "unevaluatedProperties", "propertyNames", "not", "if", "then", "else"),
)
DATA = ("enum", "const", "default", "examples", "example", "required")
IDENTIFIERS = ("$id", "id", "$anchor", "$dynamicAnchor", "x-guidance")
UNSUPPORTED_REGEX = re.compile(r"\(\?<?[=!]|(?<!\\)(?:\\\\)*\\[1-9bBAZk]")
ROOT = "#/$defs/root"


def document(schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> str:
    """A schema as JSON for llguidance; references in it point into `root`, or where that is None into itself."""
    if root is None:
        adapted = _adapt(schema, "#")
    else:
        adapted = _adapt(schema, ROOT)
        if '"$ref"' in json.dumps(adapted):
            adapted = {**adapted, "$defs": {"root": _adapt(root, ROOT)}}
    draft = str((schema if root is None else root).get("$schema", ""))
    kept = {"$schema": draft} if KNOWN_DRAFTS.fullmatch(draft) else {}
    return json.dumps({**kept, **adapted, "x-guidance": OPTIONS}, ensure_ascii=False)


def check_types(schema: Any, path: str = "#") -> None:
    """Raise UsageError for the name of a type that there is not, which would constrain nothing."""
    if not isinstance(schema, Mapping):
        return
    kinds = schema.get("type")
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if isinstance(kind, str) and kind not in JSON_TYPES:
            raise UsageError(
                f"json_schema: {path}/type = {kind!r}: there is no such type; choose {', '.join(sorted(JSON_TYPES))}"
            )
    for inner, part in _parts(schema, path):
        check_types(part, inner)


def _parts(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """The schemas in a schema, with their paths."""
    for key, value in schema.items():
        if key in NAMED_SCHEMAS and isinstance(value, Mapping):
            yield from ((f"{path}/{key}/{name}", part) for name, part in value.items())
        elif key in LISTED_SCHEMAS and isinstance(value, list):
            yield from ((f"{path}/{key}/{index}", part) for index, part in enumerate(value))
        elif key in NESTED_SCHEMAS:
            yield f"{path}/{key}", value


def is_supported_regex(pattern: str) -> bool:
    """Whether a pattern does without look-around, word boundaries and back-references, which no grammar can follow."""
    return not UNSUPPORTED_REGEX.search(pattern)


def resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema with its outermost reference into `root` put in; as it is if there is none or it leads nowhere."""
    for _ in range(len(root) + 8):  # references may go in circles
        reference = schema.get("$ref")
        target = _pointed_at(reference, root) if isinstance(reference, str) else None
        if not isinstance(target, Mapping):
            break
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


def _pointed_at(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root if reference.startswith("#") else None
    for step in reference.removeprefix("#").split("/")[1:]:
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def _adapt(schema: Any, root: str) -> Any:
    """Without identifiers, unknown types and patterns that are not supported; `#` in references becomes `root`."""
    if isinstance(schema, list):
        return [_adapt(part, root) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {key: _adapt_value(key, value, root) for key, value in schema.items() if _is_kept(key, value)}


def _is_kept(key: str, value: Any) -> bool:
    if key == "pattern" and isinstance(value, str):
        return is_supported_regex(value)
    if key == "type" and isinstance(value, str):
        return value in JSON_TYPES
    return key != "$schema" and key not in IDENTIFIERS


def _adapt_value(key: str, value: Any, root: str) -> Any:
    if key == "$ref" and isinstance(value, str) and value.startswith("#"):
        return root + value[1:]
    if key in NAMED_SCHEMAS and isinstance(value, Mapping):
        return {name: _adapt(part, root) for name, part in value.items()}
    return value if key in DATA else _adapt(value, root)
