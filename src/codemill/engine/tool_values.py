"""The values of parameters in Qwen3-Coder's form, as Lark rules for llguidance. No torch here.

The parser has to read back what the grammar lets through, so raw text cannot contain the tags that the parser may
take for the value's end: a value with one of `TAGS` in it can only be written where the grammar is not used. Values in
JSON are not limited so: a string in an array or object that holds such tags may be misread, as without a grammar.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from codemill.chat.tool_schema import STRING, coerce, schema_types
from codemill.engine.json_schema import document, is_supported_regex, resolve

Schema = Mapping[str, Any]

TAGS = ("</parameter>", "<parameter=", "<function=", "<tool_call>")
END = r'"\n</parameter>\n"'
ANY_TEXT = f"/(?s:.*)/ & ~/(?s:.*)({'|'.join(TAGS)})(?s:.*)/".replace("</", r"<\/")
# Without the beginnings of those tags. Where the text is bounded too, ANY_TEXT would take llguidance too many states.
SAFE_TEXT = r"/([^<]|<+([^<\/pft]|\/?p[^a<]|\/?pa[^r<]|\/[^p<]|f[^u<]|fu[^n<]|t[^o<]|to[^o<]))*<*/"
# Text that is nothing but text: the parser would read the rest as a number, a word of JSON or Python, or a literal.
PLAIN_TEXT = (
    r"""/[^\s\d\-+.(\[{"'#\\](?s:.*)/ & ~/(?i:true|false|null|none)([^a-zA-Z0-9_](?s:.*))?/"""
    r""" & ~/[a-zA-Z]{1,2}["'](?s:.*)/"""
)
# JSON lets an exponent grow beyond what a double holds, and the parser then reads text.
NUMBER = r"/-?(0|[1-9][0-9]{0,39})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,2})?/"
NUMBER_KEYWORDS = {
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "anyOf",
    "oneOf",
    "allOf",
}
SHARED_RULES = ('any_text[lazy]: ANY_TEXT "</parameter>\\n"', f"ANY_TEXT: {ANY_TEXT}")
ANCHORS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|([\^$])", re.DOTALL)


def value_rules(name: str, schema: Schema, root: Schema) -> list[str]:
    """Rules for rule `name`: a value of `schema`, part of the parameters `root`, and the closing tag after it."""
    types = schema_types(schema, root) or STRING
    branches = list(_branches(schema, root, 0)) if "string" in types else [schema]
    rules: list[str] = []
    alternatives: list[str] = []
    for i, branch in enumerate(branches):
        alternative, more = _branch(f"{name}_{i}", branch, root, types)
        alternatives.append(alternative)
        rules += more
    return [f"{name}: {' | '.join(dict.fromkeys(alternatives))}", *rules]


def _branches(schema: Schema, root: Schema, depth: int) -> Iterator[Schema]:
    """The schemas of one type each that a schema with strings in it consists of."""
    schema = resolve(schema, root)
    for key in ("anyOf", "oneOf", "allOf"):
        parts = schema.get(key)
        if isinstance(parts, list) and parts and depth < 8 and (key != "allOf" or len(parts) == 1):
            rest = {name: value for name, value in schema.items() if name != key}
            for part in parts:
                yield from _branches({**rest, **part} if isinstance(part, Mapping) else rest, root, depth + 1)
            return
    kinds = schema.get("type")
    yield from ({**schema, "type": kind} for kind in kinds) if isinstance(kinds, list) else (schema,)


def _branch(name: str, schema: Schema, root: Schema, types: frozenset[str]) -> tuple[str, list[str]]:
    """An alternative of a value's rule, and the rules it needs."""
    values = _values(schema, types)
    if values:
        return f"({' | '.join(values)}) {END}", []
    if schema.get("type") == "number" and not NUMBER_KEYWORDS & schema.keys():
        return f"{NUMBER} {END}", []
    if "string" not in (schema_types(schema, root) or STRING):
        return f"{name} {END}", [f"{name}: %json {document(schema, root)}"]
    base, conditions = _conditions(schema)
    if types - STRING - {"null"}:
        conditions.append(PLAIN_TEXT)
    if not conditions:
        return "any_text", []
    terminal = name.upper()
    text = " & ".join([base, r"~/(?s:.*)\r/", *conditions])
    return name, [f"{name}[lazy]: {terminal} {END}", f"{terminal}: {text}"]


def _values(schema: Schema, types: frozenset[str]) -> list[str]:
    """The values of `enum` or `const` as Lark strings, those that the parser reads as what they are."""
    given = [schema["const"]] if "const" in schema else schema.get("enum")
    texts = [(value if isinstance(value, str) else json.dumps(value), value) for value in given or ()]
    kept = [text for text, value in texts if _reads_back(text, value, types)]
    return [json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(kept)]


def _reads_back(text: str, value: Any, types: frozenset[str]) -> bool:
    found = coerce(text, types)
    return type(found) is type(value) and found == value and not any(tag in text for tag in TAGS)


def _conditions(schema: Schema) -> tuple[str, list[str]]:
    """What a string's schema asks of its text, as Lark terminals, and the terminal to take them with."""
    low, high, pattern = (schema.get(key) for key in ("minLength", "maxLength", "pattern"))
    conditions = []
    if low or high is not None:
        conditions.append(f"/(?s:.){{{int(low or 0)},{'' if high is None else int(high)}}}/")
    regex = _anchored(pattern) if isinstance(pattern, str) else None
    if regex is not None:
        conditions.append(f"/{regex}/")
    return "ANY_TEXT" if high is None and regex is None else SAFE_TEXT, conditions


def _anchored(pattern: str) -> str | None:
    """A regex that matches a whole text in which the pattern is found; None if that cannot be said."""
    places = [match.start() for match in ANCHORS.finditer(pattern) if match[1]]
    at_start, at_end = 0 in places, bool(pattern) and len(pattern) - 1 in places and pattern[-1] == "$"
    inner = set(places) - ({0} if at_start else set()) - ({len(pattern) - 1} if at_end else set())
    if inner or not is_supported_regex(pattern) or pattern.startswith("$"):
        return None
    body = pattern[at_start : len(pattern) - at_end]
    return _escape(f"{'' if at_start else '(?s:.*)'}(?:{body}){'' if at_end else '(?s:.*)'}")


def _escape(regex: str) -> str:
    """A regex as it may stand between slashes on one line of Lark."""
    regex = re.sub(r"(\\.)|/", lambda match: match[1] or r"\/", regex, flags=re.DOTALL)
    return regex.replace("\r", r"\r").replace("\n", r"\n")
