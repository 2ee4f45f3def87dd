"""`codemill sandbox`: run a program in isolation, and see which of the isolation's promises hold here."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codemill.commands import add_verb, options, print_json
from codemill.errors import CodemillError, UsageError

if TYPE_CHECKING:
    from codemill.sandbox.check import Finding
    from codemill.sandbox.result import RunResult

EXAMPLES = """
codemill sandbox --check
codemill sandbox solution.py --timeout 5 --memory 512
echo 'print(6 * 7)' | codemill sandbox -
codemill sandbox Main.java --stdin input.txt --json
"""
MIB = 1 << 20


def register(app: typer.Typer) -> None:
    add_verb(app, sandbox, EXAMPLES)


def sandbox(
    program: Annotated[
        str | None, typer.Argument(metavar="[FILE|-]", help="The program to run, or - for Python on standard input.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Try each promise on this host; a row for each.")] = False,
    language: Annotated[str | None, typer.Option(help="Its language; default: by the file's name.")] = None,
    stdin: Annotated[str | None, typer.Option(metavar="FILE", help="What it reads; - for our own input.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.01, help="Seconds of CPU time; default: by language, 10 for Python.")
    ] = None,
    wall_timeout: Annotated[float | None, typer.Option(min=0.01, help="Seconds; default: two more than that.")] = None,
    memory: Annotated[
        int | None,
        typer.Option(min=1, help="MiB, of all its processes together; default: by language, 1024 for Python."),
    ] = None,
    unsafe: Annotated[bool, typer.Option("--unsafe", help="Run without isolation where the host has none.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Run a program in the sandbox and say what happened; the status is 0 if the program ended well, otherwise 1."""
    if check == (program is not None) or (check and unsafe):
        raise UsageError("give a program to run, or --check (which tries hostile programs, so never --unsafe)")
    if program is None:
        _check(as_json)
        return
    from codemill.sandbox import run

    source = _read(program)
    language = language or _language_of(program)
    num_bytes = None if memory is None else memory * MIB
    result = run(source, language, _read(stdin) if stdin else "", timeout, num_bytes, wall_timeout, unsafe=unsafe)
    _print_result(result, as_json)
    if result.status != "ok":
        raise typer.Exit(1)


def _read(name: str) -> str:
    """The text of a file, or of standard input for `-`. Raises UsageError for what is no text."""
    if name == "-":
        return options.read_prompt("-")
    try:
        return Path(name).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name} cannot be read as text: {error}") from None


def _language_of(program: str) -> str:
    from codemill.sandbox.languages import LANGUAGES

    suffix = Path(program).suffix.lower()
    for name, language in LANGUAGES.items():
        if suffix and suffix == Path(language.file).suffix.lower():
            return name
    if program == "-":
        return "python"
    raise UsageError(f"{program}: no language has the suffix {suffix or '(none)'}: give it with --language")


def _print_result(result: "RunResult", as_json: bool) -> None:
    if as_json:
        fields = {name: value for name, value in vars(result).items() if name != "files"}
        print_json(fields)
        return
    print(result.stdout, end="")
    print(result.stderr, end="", file=sys.stderr)
    why = f", {result.detail}" if result.detail else ""
    print(f"[{result.status}{why}; {result.cpu_seconds:.2f} s CPU, {result.wall_seconds:.2f} s]", file=sys.stderr)


def _check(as_json: bool) -> None:
    """A row for each promise. Raises CodemillError if one is broken, or IsolationError if nothing is isolated."""
    from codemill.sandbox import SandboxPool
    from codemill.sandbox.check import check

    with SandboxPool(workers=1) as pool:
        findings = list(check(pool.run))
    if as_json:
        print_json([_row(finding) for finding in findings])
    else:
        for finding in findings:
            mark = "holds" if finding.holds else "BROKEN"
            print(f"{mark:7} {finding.promise.name:32} {finding.promise.means}")
            if not finding.holds:
                print(f"{'':7} {finding.observed}")
    broken = [finding.promise.name for finding in findings if not finding.holds]
    if broken:
        raise CodemillError(f"{len(broken)} of {len(findings)} promises do not hold here: {', '.join(broken)}")


def _row(finding: "Finding") -> dict[str, object]:
    promise = finding.promise
    return {"promise": promise.name, "means": promise.means, "holds": finding.holds, "observed": finding.observed}
