"""Whether a tool call is the one that BFCL wants: the rules of the leaderboard's AST checker for Python functions.

Source: the Berkeley Function Calling Leaderboard (Patil et al. 2025), `bfcl_eval/eval_checker/ast_eval/ast_checker.py`.
What is acceptable for an argument is a list of values in which "" means that the argument may be missing. Types must be
the schema's, exactly (True is no integer), except that

- a whole number may stand for a float, though not inside a list;
- a value of the type of the first acceptable one is taken, whatever the schema says ("variables", such as `df['x']`);
- texts are compared without case, spaces and the characters ,./-_*^ and with either kind of quote.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from codemill.chat.tool_types import ToolCall

_TYPES: Mapping[str, type] = {
    **dict.fromkeys(("string", "any", "char", "String"), str),
    **dict.fromkeys(("integer", "byte", "short", "long"), int),
    **dict.fromkeys(("float", "number", "double"), float),
    **dict.fromkeys(("boolean", "bool"), bool),
    **dict.fromkeys(("array", "tuple", "list"), list),
    **dict.fromkeys(("dict", "object"), dict),
}
_IGNORED = re.compile(r"[ ,./\-_*^]")
_OPTIONAL = ""

Expected = Mapping[str, Mapping[str, Sequence[Any]]]
"""One call: the function's name -> argument -> acceptable values."""


def calls_fault(functions: Sequence[Mapping[str, Any]], wanted: Sequence[Expected], calls: Sequence[ToolCall]) -> str:
    """Why `calls` are not the wanted ones, in any order; empty if they are.

    As the leaderboard does, each wanted call takes the first call that fits and is still free.
    """
    if len(calls) != len(wanted):
        return f"{len(calls)} calls instead of {len(wanted)}"
    free = list(calls)
    for expected in wanted:
        faults = [call_fault(_description(functions, expected), expected, call) for call in free]
        if "" not in faults:
            return faults[0] if len(wanted) == 1 else f"no call is {_name(expected)}: " + "; ".join(faults)
        free.pop(faults.index(""))
    return ""


def call_fault(function: Mapping[str, Any], expected: Expected, call: ToolCall) -> str:
    """Why `call` is not the expected one; empty if it is. `function` is the function's description."""
    name, acceptable = _name(expected), next(iter(expected.values()))
    if call.name not in (name, underscored(name)):
        return f"{call.name!r} is called, not {name!r}"
    parameters = function.get("parameters") or {}
    for key in parameters.get("required") or ():
        if key not in call.arguments:
            return f"{name}: the required argument {key!r} is missing"
    properties = parameters.get("properties") or {}
    for key, value in call.arguments.items():
        if key not in properties or key not in acceptable:
            return f"{name}: there should be no argument {key!r}"
        if not _fits(value, acceptable[key], properties[key]):
            return f"{name}: {key} = {_shown(value)} instead of {' or '.join(map(_shown, acceptable[key]))}"
    missing = [key for key, values in acceptable.items() if key not in call.arguments and _OPTIONAL not in values]
    return f"{name}: the argument {missing[0]!r} is missing" if missing else ""


def underscored(name: str) -> str:
    """A function's name where dots are not allowed; the leaderboard renames so for some models."""
    return name.replace(".", "_")


def standardised(text: str) -> str:
    """The form in which texts are compared."""
    return _IGNORED.sub("", text).lower().replace("'", '"')


def _name(expected: Expected) -> str:
    return next(iter(expected))


def _description(functions: Sequence[Mapping[str, Any]], expected: Expected) -> Mapping[str, Any]:
    return next((function for function in functions if function.get("name") == _name(expected)), {})


def _fits(value: Any, acceptable: Sequence[Any], schema: Mapping[str, Any]) -> bool:
    wanted = _TYPES.get(str(schema.get("type")), str)
    items = schema.get("items") if wanted is list else None
    item = _TYPES.get(str(items.get("type")), str) if isinstance(items, Mapping) and "type" in items else None
    if wanted is float and type(value) is int:
        value = float(value)
    if not _has_type(value, acceptable, wanted, item):
        return False
    if type(value) is not wanted or _first_type(acceptable) not in (None, wanted):
        return value in acceptable  # a variable
    if wanted is dict:
        return any(_is_dict(value, option) for option in acceptable)
    if item is dict:
        return any(_are_dicts(value, option) for option in acceptable)
    if wanted in (str, list):
        return _comparable(value) in [_comparable(option, wanted) for option in acceptable]
    return value in acceptable


def _has_type(value: Any, acceptable: Sequence[Any], wanted: type, item: type | None) -> bool:
    """`item`: the type of a list's elements; they are checked one level deep."""
    if type(value) is not wanted:
        return type(value) is _first_type(acceptable)
    if item is None or not isinstance(value, list):
        return True
    return any(
        not isinstance(option, list) or all(_has_type(element, option, item, None) for element in value)
        for option in acceptable
    )


def _first_type(acceptable: Sequence[Any]) -> type | None:
    return next((type(option) for option in acceptable if option != _OPTIONAL), None)


def _comparable(value: Any, wanted: type = str) -> Any:
    """The standard form of a text, and of the texts in a list; a list that may be missing may also be empty."""
    if wanted is list and value == _OPTIONAL:
        return []
    if isinstance(value, list):
        return [_comparable(element) if isinstance(element, str) else element for element in value]
    return standardised(value) if isinstance(value, str) else value


def _is_dict(value: Any, option: Any) -> bool:
    """Whether a dict has the option's keys, those that may be missing aside, and acceptable values."""
    if not isinstance(value, dict) or not isinstance(option, Mapping):
        return False
    given = all(key in option and _is_entry(element, option[key]) for key, element in value.items())
    return given and all(key in value or _OPTIONAL in _options(options) for key, options in option.items())


def _is_entry(value: Any, options: Any) -> bool:
    """The leaderboard compares dicts in dicts as a whole; here what is acceptable may be listed in them, too."""
    plain = standardised(value) if isinstance(value, str) else value
    listed = _options(options)
    return plain in [standardised(option) if isinstance(option, str) else option for option in listed] or any(
        _is_dict(value, option) for option in listed
    )


def _are_dicts(values: Any, option: Any) -> bool:
    if not isinstance(values, list) or not isinstance(option, list) or len(values) != len(option):
        return False
    return all(_is_dict(value, wanted) for value, wanted in zip(values, option, strict=True))


def _options(options: Any) -> Sequence[Any]:
    return options if isinstance(options, list) else [options]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
