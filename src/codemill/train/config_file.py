"""Configuration files: TOML into frozen dataclasses, with `--set key=value` overrides, before anything loads."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from codemill.errors import CodemillError, UsageError

Config = TypeVar("Config")


def load_config(kind: type[Config], path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path` as a `kind`, with `section.key=value` overrides. Raises UsageError naming the file and the key."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    for override in overrides:
        _apply_override(raw, override)
    try:
        return _build(kind, raw, prefix="")
    except CodemillError as error:
        raise UsageError(f"{path}: {error}") from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    *sections, name = key.strip().split(".")
    if not separator or not all((*sections, name)):
        raise UsageError(f"--set {override}: write section.key=value")
    value = _parse_value(text)
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise UsageError(f"--set {override}: {section} is no section")
    raw[name] = value


def _parse_value(text: str) -> Any:
    """As in a TOML file; a bare word is a string."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _build(kind: type[Config], raw: Mapping[str, Any], prefix: str) -> Config:
    assert is_dataclass(kind)
    types = get_type_hints(kind)
    unknown = [key for key in raw if key not in types]
    if unknown:
        close = get_close_matches(unknown[0], types, n=1)
        meant = f": did you mean {close[0]}?" if close else f"; known are {', '.join(types)}"
        raise UsageError(f"unknown key {prefix}{unknown[0]}{meant}")
    values = {key: _convert(types[key], value, prefix + key) for key, value in raw.items()}
    required = {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}
    missing = sorted(required - set(values))
    if missing:
        raise UsageError(f"the key {prefix}{missing[0]} is missing")
    return kind(**values)


def _convert(expected: Any, value: Any, key: str) -> Any:
    """A value of TOML as the annotation `expected` of a field says. Raises UsageError naming the key."""
    if isinstance(expected, UnionType):  # SECTION | None, str | None: what is written is never None
        (expected,) = (each for each in get_args(expected) if each is not NoneType)
    if is_dataclass(expected) and isinstance(expected, type):
        if not isinstance(value, Mapping):
            raise UsageError(f"{key} must be a section")
        return _build(expected, value, prefix=key + ".")
    if get_origin(expected) is tuple:
        return _convert_list(get_args(expected)[0], value, key)
    if get_origin(expected) is not None:  # Mapping[str, X]
        if not isinstance(value, Mapping):
            raise UsageError(f"{key} must be a section")
        return {name: _convert(get_args(expected)[1], each, f"{key}.{name}") for name, each in value.items()}
    return _convert_scalar(expected, value, key)


def _convert_list(expected: Any, value: Any, key: str) -> tuple[Any, ...]:
    """One value stands for a list of one."""
    values = value if isinstance(value, list) else [value]
    return tuple(_convert(expected, each, key) for each in values)


def _convert_scalar(expected: type, value: Any, key: str) -> Any:
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise UsageError(f"{key} = {value!r} is no {expected.__name__}")
    if isinstance(value, int | float) and not 0 <= value < math.inf:
        raise UsageError(f"{key} = {value!r} must be a number that is not negative")
    return value
