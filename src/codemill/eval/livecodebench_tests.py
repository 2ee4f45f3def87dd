"""The tests of a LiveCodeBench record: a JSON text, or one that was pickled, compressed and put into base64."""

import base64
import binascii
import io
import json
import pickle
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from codemill.errors import CodemillError

MOST_BYTES = 1 << 30  # of a test file, unpacked


@dataclass(frozen=True)
class Test:
    """One test. For a "functional" one, `input` has an argument in JSON on each line, and `output` is JSON."""

    __test__ = False  # pytest, this is none of yours

    input: str
    output: str
    kind: Literal["stdin", "functional"]


def read_tests(fields: Mapping[str, Any]) -> list[Test]:
    """All tests of a record, the public ones first. Raises CodemillError for what cannot be read."""
    found = [*decode(fields.get("public_test_cases") or "[]"), *decode(fields.get("private_test_cases") or "[]")]
    if not found:
        raise CodemillError("the record has no tests")
    return found


def decode(value: Any) -> tuple[Test, ...]:
    """The tests in one field. Raises CodemillError."""
    return _decoded(value) if isinstance(value, str) else _tests(value)


def is_plausible(value: Any) -> bool:
    """A quick look at whether a field holds tests in one of the forms."""
    if isinstance(value, list):
        return True
    if not isinstance(value, str):
        return False
    try:
        return value.lstrip()[:1] in ("", "[") or base64.b64decode(value[:8], validate=True)[:1] == b"x"
    except binascii.Error:
        return False


@lru_cache(maxsize=8)  # several samples of a problem are judged one after the other
def _decoded(text: str) -> tuple[Test, ...]:
    try:
        return _tests(json.loads(text if text.lstrip().startswith("[") else _unpacked(text)))
    except (ValueError, RecursionError, zlib.error, pickle.UnpicklingError, EOFError, LookupError) as error:
        raise CodemillError(f"the tests cannot be read: {error}") from None


def _unpacked(text: str) -> str:
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(base64.b64decode(text, validate=True), MOST_BYTES)
    if unpacker.unconsumed_tail:
        raise ValueError(f"more than {MOST_BYTES} bytes")
    found = _TextUnpickler(io.BytesIO(data)).load()
    if not isinstance(found, str):
        raise ValueError(f"a {type(found).__name__} is pickled, not a text")
    return found


class _TextUnpickler(pickle.Unpickler):
    """Reads a pickle of plain values only: what a pickle can run, it runs through a name that it looks up."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which no text needs")


def _tests(items: Any) -> tuple[Test, ...]:
    return tuple(map(_test, items)) if isinstance(items, list) else _refuse("they are no list")


def _test(item: Any) -> Test:
    if not isinstance(item, dict) or not all(isinstance(item.get(name), str) for name in ("input", "output")):
        return _refuse("a test has no input and output")
    kind = item.get("testtype", "stdin")
    if kind not in ("stdin", "functional"):
        return _refuse(f"a test is of type {kind!r}, neither stdin nor functional")
    return Test(item["input"], item["output"], kind)


def _refuse(reason: str) -> Any:
    raise CodemillError(f"the tests cannot be read: {reason}")


def function_name(fields: Mapping[str, Any]) -> str | None:
    """The function or method that functional tests call, from the metadata or the starter code."""
    metadata = fields.get("metadata") or {}
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except (ValueError, RecursionError):
            metadata = {}
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    if isinstance(name, str) and name:
        return name
    methods = re.findall(r"def\s+(\w+)\s*\(", fields.get("starter_code") or "")
    return next((method for method in methods if not method.startswith("__")), None)
