"""Reads server-sent events as clients do."""

import json
from collections.abc import Iterator
from typing import Any

import httpx


def read_events(response: httpx.Response) -> Iterator[tuple[str | None, str]]:
    """Pairs of the event's name, or None, and its data."""
    name, data = None, []
    for line in response.iter_lines():
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield name, "\n".join(data)
            name, data = None, []


def read_chunks(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON objects of an OpenAI stream, which has to end with `[DONE]`."""
    is_done = False
    for _, data in read_events(response):
        assert not is_done, "something comes after [DONE]"
        if data == "[DONE]":
            is_done = True
        else:
            yield json.loads(data)
    assert is_done, "the stream has no [DONE]"
