"""From a fork of the server to the sandboxed program."""

import os
import resource
import sys
from collections.abc import Mapping
from typing import NoReturn

from codemill.sandbox import confinement, program, root
from codemill.sandbox.confinement import Identity
from codemill.sandbox.job import Job, Limits


def be_born(
    identity: Identity,
    job: Job,
    limits: Limits,
    command: tuple[str, ...] | None,
    stdin: int,
    writers: Mapping[str, int],
) -> NoReturn:
    """Become `command`, or the job's Python source. Never returns; a failure is reported as "broken TEXT"."""
    leave, write, report = os._exit, os.write, writers["report"]
    status = 125
    try:
        confinement.attach(stdin, writers["stdout"], writers["stderr"], keep=report)
        os.chdir(root.WORK)
        os.environ.update(job.environment)
        address_space = _address_space() + limits.memory if command is None else None
        confinement.confine(identity, limits, address_space)
        if command is not None:
            confinement.restore_signals()
            status = _execute(command)
            leave(status)
        assert job.source is not None
        status = program.execute(job.source, report)
    except BaseException as error:  # noqa: BLE001 - there is nobody above to tell
        write(report, f"broken {type(error).__name__}: {error}".encode("utf-8", "replace"))
    finally:
        leave(status)


def _execute(command: tuple[str, ...]) -> int:
    """Become the command. Returns 126, as a shell does, if the run itself made it and it cannot be started."""
    try:
        os.execvp(command[0], command)
    except OSError as error:
        if not command[0].startswith("./"):
            raise  # a toolchain that is not there: no fault of the program
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        return 126


def _address_space() -> int:
    """Bytes of virtual memory that the warm interpreter takes itself."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def warm_up(modules: tuple[str, ...]) -> None:
    """Import what programs often import, so that their processes find it loaded; a module that is not there is not."""
    for name in modules:
        try:
            __import__(name)
        except ImportError:
            print(f"not preloaded: {name}", file=sys.stderr)
