"""Metadata of the kind that is expected, or one line that says what is wrong with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from codemill.errors import CodemillError

Kind = TypeVar("Kind", int, float, str, bool)
_MISSING = object()


@dataclass(frozen=True)
class Metadata:
    """The metadata of the file `path`."""

    path: Path
    values: Mapping[str, Any]

    def get(self, key: str, kind: type[Kind], default: Any = _MISSING) -> Any:
        """The value of `key`, which is a `kind` (an int will do as a float). Raises CodemillError."""
        value = self.values.get(key, default)
        if value is _MISSING:
            raise CodemillError(f"{self.path}: the metadata have no {key}")
        if value is default:
            return value
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise CodemillError(f"{self.path}: {key} = {shown(value)} must be a {kind.__name__}")
        return value

    def items(self, key: str, kind: type[Kind], default: list[Kind] | None = None) -> list[Kind]:
        """The array `key`, all of one kind. Raises CodemillError."""
        value = self.values.get(key, default)
        if value is None:
            raise CodemillError(f"{self.path}: the metadata have no {key}")
        if not isinstance(value, list) or not set(map(type, value)) <= {kind}:
            raise CodemillError(f"{self.path}: {key} = {shown(value)} must be an array of {kind.__name__}")
        return cast("list[Kind]", value)


def shown(value: Any) -> str:
    """A value as an error message can hold it."""
    text = repr(value[:4] if isinstance(value, list) else value)
    return text if len(text) <= 60 else text[:60] + "..."
