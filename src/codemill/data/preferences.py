"""Preference pairs from answers that were run: one that passes is preferred to one that fails."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codemill.errors import UsageError

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Attempt:
    """An answer to a prompt and whether its program did what was asked."""

    text: str
    passed: bool


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one conversation, of which `chosen` is the better one."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str

    def record(self) -> dict[str, Any]:
        """The pair as a line of a `{prompt, chosen, rejected}` file, each a list of messages."""
        answers = {name: [{"role": "assistant", "content": getattr(self, name)}] for name in ("chosen", "rejected")}
        return {"prompt": list(self.prompt), **answers}


def preference_pairs(prompt: Sequence[Message], attempts: Iterable[Attempt], most: int = 2) -> list[PreferencePair]:
    """At most `most` pairs of distinct answers to one prompt, those first that were given most often.

    The first passing answer meets the first failing one, the second the second, and so on; where one side has fewer,
    its answers are used again. No pair occurs twice. Nothing comes of a prompt whose answers all passed or all failed.
    """
    if most < 1:
        raise UsageError(f"{most} pairs for each prompt: give at least 1")
    answers = list(attempts)
    chosen, rejected = (
        _distinct(attempt.text for attempt in answers if attempt.passed is side) for side in (True, False)
    )
    if not chosen or not rejected:
        return []
    pairs = (_pair(number, chosen, rejected) for number in range(min(most, len(chosen) * len(rejected))))
    return [PreferencePair(tuple(prompt), better, worse) for better, worse in pairs]


def _distinct(texts: Iterable[str]) -> list[str]:
    """Each text once, the most frequent first, else in order of appearance."""
    return [text for text, _ in Counter(texts).most_common()]


def _pair(number: int, chosen: Sequence[str], rejected: Sequence[str]) -> tuple[str, str]:
    """Pair `number` of all: diagonals of the table of chosen times rejected, so that no answer returns early."""
    longer = max(len(chosen), len(rejected))
    shift, place = divmod(number, longer)
    if len(chosen) >= len(rejected):
        return chosen[place], rejected[(place + shift) % len(rejected)]
    return chosen[(place + shift) % len(chosen)], rejected[place]


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line, whole or not at all; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    count = 0
    with temporary.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    os.replace(temporary, path)
    return count
