"""The Python standard library of the running interpreter as training text."""

import hashlib
import re
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

EXCLUDED_FOLDERS = frozenset(
    "test tests idle_test site-packages dist-packages turtledemo pydoc_data __phello__ __pycache__".split()
)
MAX_BYTES = 200_000
MAX_LITERAL_SHARE = 0.25
"""A file whose characters are numbers and escapes to more than this share is a table, not a program."""

_MACHINE_SPECIFIC = re.compile(r"_sysconfigdata|config-\d")
_LITERALS = re.compile(r"0x[0-9a-fA-F]+|\\[ux][0-9a-fA-F]+|\d+")


@dataclass(frozen=True)
class Module:
    """One source file: dotted `name`, `path` relative to the library's root (with /), and its `text`."""

    name: str
    path: str
    text: str

    @property
    def top_level(self) -> str:
        """The package or module it belongs to; `_decimal` counts as `decimal`, whose twin it often is."""
        return self.name.split(".")[0].lstrip("_") or self.name


def stdlib_modules(root: Path | None = None) -> list[Module]:
    """Every program file of the standard library, sorted by name.

    Left out: tests, installed packages, files of more than 200 kB, tables of numbers, files that describe
    the machine, and files that are not UTF-8. `root` replaces the interpreter's own library folder.
    """
    folder = Path(sysconfig.get_path("stdlib")) if root is None else root
    paths = sorted(path for path in folder.rglob("*.py") if _wanted(path.relative_to(folder)))
    modules = (_read(path, folder) for path in paths)
    return sorted((module for module in modules if module is not None), key=lambda module: module.name)


def split_modules(modules: Iterable[Module], held_out_fraction: float) -> tuple[list[Module], list[Module]]:
    """Split into (train, held_out); a stable hash puts each top-level module or package whole on one side."""
    train: list[Module] = []
    held_out: list[Module] = []
    for module in modules:
        side = held_out if _unit_hash(module.top_level) < held_out_fraction else train
        side.append(module)
    return train, held_out


def _wanted(relative: Path) -> bool:
    if EXCLUDED_FOLDERS.intersection(relative.parts[:-1]):
        return False
    return not any(_MACHINE_SPECIFIC.match(part) for part in relative.parts)


def _read(path: Path, root: Path) -> Module | None:
    if path.stat().st_size > MAX_BYTES:
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    if not text.strip() or _is_table(text):
        return None
    relative = path.relative_to(root)
    parts = relative.with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
    return Module(name, relative.as_posix(), text)


def _is_table(text: str) -> bool:
    literals = sum(len(match.group()) for match in _LITERALS.finditer(text))
    solid = sum(map(len, text.split()))
    return literals > MAX_LITERAL_SHARE * solid or "decoding_table = (" in text


def _unit_hash(name: str) -> float:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
