"""The settings of a run, kept beside its checkpoints: they continue no other run."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from codemill.config import read_json_object
from codemill.errors import CodemillError, UsageError

_MISSING = "nothing"


def claim(directory: Path, settings: Mapping[str, Any]) -> None:
    """Make `directory` the run's with these settings: what decides which numbers are computed, as JSON values.

    Raises UsageError naming the setting if checkpoints of a run with others are there, CodemillError if it cannot be
    written.
    """
    path = directory / "settings.json"
    if path.exists() and any((directory / "checkpoints").glob("step-*")):
        before = read_json_object(path)
        for name, old, new in _differences(before, json.loads(json.dumps(settings))):
            raise UsageError(
                f"{directory} holds a run with {name} = {old}, not {new}: give another output, or delete that one"
            )
    temporary = path.with_suffix(".partial")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise CodemillError(f"the output {directory} cannot be written: {error.strerror}") from None


def _differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            yield from _differences(before.get(key, _MISSING), now.get(key, _MISSING), f"{name}.{key}" if name else key)
    elif before != now:
        yield name, before, now
