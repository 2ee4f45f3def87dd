"""The command line: one verb, one function call. How verbs are written: see `codemill.commands`.

Exit status: 0 success, 1 the work failed, 2 the command was wrong, 130 interrupted. An error is one line on standard
error; `--debug` puts the traceback above it.
"""

import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from types import TracebackType
from typing import Annotated

import typer
from typer.main import get_command

from codemill import __version__
from codemill.errors import CodemillError, UsageError

# In the order of `codemill --help`; each names a module of `codemill.commands`.
VERBS = (
    *("models", "generate", "chat", "complete", "agent", "serve", "train", "eval", "data"),
    *("quantize", "convert", "merge", "bench", "sandbox"),
)


def build_app() -> typer.Typer:
    """The application with all its verbs."""
    # Plain help: rich would cost as much start-up time as everything else here together.
    app = typer.Typer(
        name="codemill",
        callback=_program,
        invoke_without_command=True,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for verb in VERBS:
        import_module(f"codemill.commands.{verb}").register(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"codemill {__version__}")
        raise typer.Exit


def _program(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; also after a verb.")] = False,
) -> None:
    """The Qwen3-Coder system in one readable codebase: models, engine, agent, training, evaluation."""
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `argv` (by default this process's arguments) and return its exit status."""
    args, debug = _take_debug(sys.argv[1:] if argv is None else argv)
    if not debug:
        sys.excepthook = _report_bug
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode must not stop an answer
    try:
        status = _invoke(args)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        return _leave_closed_pipe()
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except typer.TyperException as error:
        return _report(_usage_message(error), error.exit_code, debug)
    except UsageError as error:
        return _report(str(error), 2, debug)
    except (CodemillError, OSError) as error:
        return _report(str(error), 1, debug)


def _take_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without `--debug`, which may stand anywhere before `--`, and whether it was there."""
    end = argv.index("--") if "--" in argv else len(argv)
    before = [argument for argument in argv[:end] if argument != "--debug"]
    return [*before, *argv[end:]], len(before) < end


def _invoke(args: list[str]) -> int:
    command = get_command(build_app())
    try:
        with command.make_context("codemill", args) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    return 0


def _usage_message(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "codemill"
    return f"{error.format_message().rstrip('.')} (see '{command} --help')"


def _report(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"codemill: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _report_bug(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    """The last resort for an exception that nobody meant to reach the user; Python then exits with status 1."""
    text = " ".join(f"{kind.__name__}: {error}".split())
    print(f"codemill: internal error: {text}; run again with --debug for the traceback", file=sys.stderr)


def _leave_closed_pipe() -> int:
    """The reader has all it wanted, as in `codemill models | head -1`; what is still buffered goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
