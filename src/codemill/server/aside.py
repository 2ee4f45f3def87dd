"""Work on long inputs, which must not hold up the event loop."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request

T = TypeVar("T")
LONG = 4096  # characters, names and values; up to there a thread costs more than it saves
LONG_BODY = 64 << 10  # bytes


async def read_body(request: Request, read: Callable[[], T]) -> T:
    """What `read` makes of a request's body; in a thread if that is long."""
    is_short = len(await request.body()) < LONG_BODY
    return read() if is_short else await asyncio.to_thread(read)


def is_long(value: Any) -> bool:
    """Whether a value of JSON is longer than LONG. Looks at no more of it than that."""
    size, left = 0, [value]
    while left and size <= LONG:
        each = left.pop()
        size += len(each) if isinstance(each, str | Mapping | Sequence) else 1
        if size > LONG or isinstance(each, str):
            continue
        if isinstance(each, Mapping):
            left += each
            left += each.values()
        elif isinstance(each, Sequence):
            left += each
    return size > LONG
