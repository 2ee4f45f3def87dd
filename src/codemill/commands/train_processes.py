"""What goes wrong in one of the processes that train together, said once."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from codemill.errors import CodemillError, UsageError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_PATIENCE = 2.0  # seconds that a process gives the first one to fail alike


@contextmanager
def said_once() -> Iterator[None]:
    """Around all that a process does. An error that all have is left to the first process.

    Of another one the message names the process. Where one has ended, the others end without a message if it left one,
    and else one of them says so. They find each other's messages in the store of torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        from codemill.train.parallel import is_lost_connection

        if is_lost_connection(error):
            raise _of_lost_connection() from error
        raise _of_own(error) from error


class Messages:
    """Those of the processes that failed, by rank."""

    def __init__(self, store: "TCPStore", num_processes: int) -> None:
        self._store, self._num_processes = store, num_processes
        self._prefix = f"codemill/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"

    def leave(self, rank: int, text: str) -> None:
        self._store.set(f"{self._prefix}/{rank}", text)

    def of(self, rank: int) -> str | None:
        key = f"{self._prefix}/{rank}"
        return self._store.get(key).decode() if self._store.check([key]) else None

    @property
    def are_there(self) -> bool:
        return any(self.of(rank) is not None for rank in range(self._num_processes))

    def is_first(self) -> bool:
        """True for the one process that asks first."""
        return self._store.add(f"{self._prefix}/asked", 1) == 1


def _messages() -> Messages | None:
    """None where the processes have no store any more, or never had."""
    from datetime import timedelta

    from torch.distributed import TCPStore

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
        return Messages(store, int(os.environ["WORLD_SIZE"]))
    except (LookupError, ValueError, RuntimeError):
        return None


def _of_own(error: Exception) -> Exception:
    """What to raise for an error of this process."""
    rank, text, status = int(os.environ.get("RANK", "0")), f"{type(error).__name__}: {error}", _status(error)
    messages = _messages()
    if messages is not None:
        messages.leave(rank, text)
        if rank and _soon(messages, text):
            return typer.Exit(status)
    if not rank or not isinstance(error, CodemillError):
        return error
    return type(error)(f"process {rank}: {error}")


def _soon(messages: Messages, text: str) -> bool:
    """Whether the first process says the same within some time."""
    end = time.monotonic() + _PATIENCE
    while (found := messages.of(0)) is None and time.monotonic() < end:
        time.sleep(0.05)
    return found == text


def _of_lost_connection() -> Exception:
    messages = _messages()
    if messages is not None and (messages.are_there or not messages.is_first()):
        return typer.Exit(1)
    return CodemillError(
        "another process has ended without a word (killed, or out of memory?): the same command continues from the "
        "newest checkpoint"
    )


def _status(error: Exception) -> int:
    return 2 if isinstance(error, UsageError) else 1
