"""Ctrl-C, or the SIGTERM of a scheduler, while something must not stop halfway."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers
SIGNALS: dict[signal.Signals, Handler] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}
"""Those that are noted, and what Python does with them."""
_SAME = 5.0  # seconds


class Interruption:
    """Inside its `with` block the first signal is only noted, for `check` to raise; a second one stops at once.

    `signal` is its number, 0 for none. torchrun passes a signal on that the terminal has sent to its processes already,
    so under it those of the next seconds are the same one.

    Where signals are not Python's own business (other threads, ignored or handled by the program) nothing changes.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._at = 0.0
        self._installed: list[signal.Signals] = []
        self._under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number, usual in SIGNALS.items():
                if signal.getsignal(number) is usual:
                    signal.signal(number, self._note)
                    self._installed.append(number)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        # Under torchrun the process that was told to end still has to take what is passed on.
        if not (self.signal and self._under_torchrun):
            self._uninstall()

    def check(self) -> None:
        """Raise KeyboardInterrupt with the signal's number if there was one."""
        if self.signal:
            raise KeyboardInterrupt(self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self._at = number, time.monotonic()
        elif not self._under_torchrun or time.monotonic() - self._at > _SAME:
            self._uninstall()
            signal.raise_signal(number)

    def _uninstall(self) -> None:
        for number in self._installed:
            signal.signal(number, SIGNALS[number])
        self._installed.clear()
