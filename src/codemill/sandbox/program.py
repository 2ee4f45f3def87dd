"""Running Python source in a process forked from a warm interpreter, as if by `python main.py`."""

import atexit
import contextlib
import errno
import gc
import linecache
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

PATH = "/sandbox/work/main.py"
_REFUSALS = (errno.EPERM, errno.EACCES, errno.EROFS)


def execute(source: bytes, reports: int) -> int:
    """Run the program to its end -> its exit status. What the status cannot tell is written to `reports`: "started",
    then "completed" (its last line was reached), "memory" (it died of MemoryError), or "blocked TEXT" (of a refusal).
    """
    # The program may replace any of these, in any module.
    tell, report = traceback.print_exception, _reporter(reports)
    module = ModuleType("__main__")
    module.__file__ = PATH
    sys.modules["__main__"] = module
    sys.argv, sys.path[:0] = [PATH], [os.path.dirname(PATH)]
    linecache.clearcache()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.enable()
    report(b"started\n")
    try:
        exec(compile(source, PATH, "exec", dont_inherit=True), module.__dict__)
        report(b"completed\n")
        return _finish(0)
    except SystemExit as stop:
        return _finish(_exit_status(stop.code))
    except BaseException as error:  # noqa: BLE001 - whatever the program raised is its outcome, not ours
        report(_reason(error))
        with contextlib.suppress(BaseException):
            tell(type(error), error, _without_our_frames(error.__traceback__))
        return _finish(1)


def _reporter(reports: int) -> Callable[[bytes], None]:
    """Tells what this process came to: not its children, and not if the program has closed the descriptor."""
    write, own, getpid = os.write, os.getpid(), os.getpid

    def report(text: bytes) -> None:
        with contextlib.suppress(OSError):
            if getpid() == own:
                write(reports, text)

    return report


def _without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _exit_status(code: Any) -> int:
    """What Python makes of the argument of `sys.exit`."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -(1 << 63) <= code < 1 << 63 else 255
    with contextlib.suppress(BaseException):
        print(code, file=sys.stderr)
    return 1


def _reason(error: BaseException) -> bytes:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return b"memory\n"
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return f"blocked {error}".encode("utf-8", "replace")[:500].replace(b"\n", b" ") + b"\n"
    return b""


def _finish(status: int) -> int:
    """The end of an interpreter: threads are waited for, exit functions run, buffers written."""
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    return status
