"""Progress of work on weights that takes long enough to wonder about: on stderr, and only for a person."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LARGE_BYTES = 2_000_000_000  # smaller models are there before a bar could be read


@contextmanager
def progress(description: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with each number of bytes done; it moves a bar where there is a terminal."""
    is_main = os.environ.get("RANK", "0") == "0"  # of processes that torchrun started
    if total_bytes < LARGE_BYTES or not (is_main and sys.stderr.isatty()):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total_bytes)
        yield lambda done: bar.advance(task, done)
