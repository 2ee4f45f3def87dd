"""Who may still join the queue, and when somebody who may not should try again. No torch here."""

import math

from codemill.engine.outputs import RequestMetrics
from codemill.errors import CodemillError, UsageError

DEFAULT_SECONDS = 5.0  # assumed of a request, as long as none has finished
NEWEST = 0.2  # weight of the newest request in the running mean


class QueueFull(CodemillError):
    """Too many requests wait. `retry_after`: seconds until there is probably room again."""

    def __init__(self, num_waiting: int, retry_after: int) -> None:
        waiting = "1 request waits" if num_waiting == 1 else f"{num_waiting} requests wait"
        reason = f"{waiting} already" if num_waiting else "all places are taken, and none may wait"
        super().__init__(f"{reason}: try again in {retry_after} s")
        self.num_waiting = num_waiting
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type["QueueFull"], tuple[int, int]]:
        return QueueFull, (self.num_waiting, self.retry_after)


class Admission:
    """Bounds the queue to `max_waiting` requests (None: no bound), besides those for which the engine has a place."""

    def __init__(self, max_waiting: int | None, num_places: int) -> None:
        """Raises UsageError if `max_waiting` is no count."""
        check_max_waiting(max_waiting)
        self._max_waiting = max_waiting
        self._num_places = num_places
        self._mean_seconds: float | None = None

    def check(self, num_waiting: int, num_running: int) -> None:
        """Raise QueueFull if another request would have to wait behind too many."""
        if self._max_waiting is None:
            return
        free_places = max(0, self._num_places - num_running)
        queued = num_waiting - free_places  # the others have not begun, but are about to
        if queued >= self._max_waiting:
            raise QueueFull(queued, self.retry_after(num_running))

    def retry_after(self, num_running: int) -> int:
        """Seconds, at least 1, until the next of the running requests probably ends and one that waits may start."""
        seconds = DEFAULT_SECONDS if self._mean_seconds is None else self._mean_seconds
        return max(1, math.ceil(seconds / max(1, num_running)))

    def note_finished(self, metrics: RequestMetrics) -> None:
        """Learn from a finished request how long one takes once it runs."""
        seconds = metrics.total_seconds - metrics.queue_seconds
        mean = seconds if self._mean_seconds is None else self._mean_seconds
        self._mean_seconds = mean + NEWEST * (seconds - mean)


def check_max_waiting(max_waiting: int | None) -> None:
    """Raise UsageError if that is no number of requests."""
    is_count = isinstance(max_waiting, int) and not isinstance(max_waiting, bool) and max_waiting >= 0
    if max_waiting is not None and not is_count:
        raise UsageError(f"max_waiting = {max_waiting!r}: must be an integer of at least 0, or None for no bound")
