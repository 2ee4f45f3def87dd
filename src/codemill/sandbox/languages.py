"""Languages by name: the job that runs a program of one, and whether this host can run it at all."""

import functools
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from codemill.errors import UsageError
from codemill.sandbox.job import Job, Limits, python_job, to_bytes
from codemill.sandbox.result import RunResult
from codemill.sandbox.toolchains import MAIN, PUBLIC, SUM, TOOLCHAINS, Language

__all__ = [
    "LANGUAGES",
    "Language",
    "check_toolchain",
    "find_executable",
    "find_language",
    "installed_version",
    "language_job",
    "missing",
]

LANGUAGES: Mapping[str, Language] = MappingProxyType({language.name: language for language in TOOLCHAINS})
_BY_ALIAS = {alias: language for language in TOOLCHAINS for alias in (language.name, *language.aliases)}
_PATH = ("/usr/local/bin", "/usr/bin", "/bin")  # the sandbox's
_VISIBLE = ("/usr/", "/bin/", "/lib")  # what the sandbox has of the host

# At the start of a line: an inner class or a word in a comment is not the class to start.
_TYPE = re.compile(
    r"^(public )?(?:(?:final|abstract|sealed|static|case) )*(?:class|object|interface|enum|record) (\w+)", re.M
)
_MAIN_METHOD = re.compile(r"\bstatic\s+(?:final\s+)?void\s+main\s*\(|\bdef\s+main\s*\(|\bextends\s+App\b")


def find_language(name: str) -> Language:
    """The language of a name or an alias, such as MultiPL-E's `rs`. Raises UsageError with the names there are."""
    found = _BY_ALIAS.get(name.strip().lower())
    if found is None:
        raise UsageError(f"there is no language {name!r}: the languages are {', '.join(LANGUAGES)}")
    return found


def language_job(
    language: str | Language,
    source: str,
    limits: Limits | None = None,
    stdin: str = "",
    files: Mapping[str, bytes] | None = None,
) -> Job:
    """The job that builds and runs a program. limits: of the program, None is what its language usually needs. files:
    more files of the work directory. Raises UsageError for a language that is not known."""
    language = find_language(language) if isinstance(language, str) else language
    limits = language.limits if limits is None else limits
    if not language.run:
        return python_job(source, stdin, limits, files)
    names = _class_names(source) if MAIN in language.run else {}
    return Job(
        commands=(_filled(language.run, names),),
        build=tuple(_filled(command, names) for command in language.build),
        files={**language.files, **(files or {}), _replaced(language.file, names): to_bytes(source)},
        stdin=to_bytes(stdin),
        environment=language.environment,
        tolerated=language.tolerated,
        limits=limits,
        build_limits=language.build_limits,
    )


def _filled(command: tuple[str, ...], names: Mapping[str, str]) -> tuple[str, ...]:
    """The command for a program, with the toolchain that `missing` saw, whatever else the PATH of an unsafe run has."""
    program, *words = command
    return (find_executable(program) or program, *(_replaced(word, names) for word in words))


def _replaced(text: str, names: Mapping[str, str]) -> str:
    for placeholder, name in names.items():
        text = text.replace(placeholder, name)
    return text


def _class_names(source: str) -> dict[str, str]:
    """The class to start: the last outermost type that begins before the main method, or else the public one, the
    first one, or Main. And the public class, or else the same."""
    types = list(_TYPE.finditer(source))
    method = _MAIN_METHOD.search(source)
    before = [found[2] for found in types if method and found.start() <= method.start()]
    public = [found[2] for found in types if found[1]]
    main = [*before[-1:], *public, *(found[2] for found in types), "Main"][0]
    return {MAIN: main, PUBLIC: [*public, main][0]}


def missing(language: str | Language) -> str | None:
    """What this host lacks to run the language, in one line with the command that brings it, or None."""
    language = find_language(language) if isinstance(language, str) else language
    absent = [name for name in language.executables if find_executable(name) is None]
    if not absent:
        return None
    found = f"{language.title}: {' and '.join(absent)} not found in {':'.join(_PATH)}"
    if not language.packages:
        return f"{found}: Debian 12 has no package of it; it comes from {language.home}"
    return f"{found}: apt-get install {' '.join(language.packages)}"


def find_executable(name: str) -> str | None:
    """Where the sandbox would find a program. What leads out of the system's folders, such as into a home, it lacks."""
    for folder in _PATH:
        path = Path(folder, name)
        if os.access(path, os.X_OK) and os.path.realpath(path).startswith(_VISIBLE):
            return str(path)
    return None


@functools.cache
def installed_version(language: Language) -> str | None:
    """The version of the toolchain on this host, such as "12.2.0"; None if it cannot say. Runs the toolchain itself."""
    if missing(language):
        return None
    try:
        answer = subprocess.run(
            language.version,
            env={"PATH": ":".join(_PATH), "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    numbers = re.search(r"\d+(?:\.\d+)+", answer.stdout + answer.stderr)
    return numbers[0] if numbers else None


def check_toolchain(language: str | Language, run: Callable[[Job], RunResult]) -> str | None:
    """Whether programs of the language give the verdicts that they must here: None, or one line on what is wrong.

    run: the sandbox's. One program that has to end well and one whose test has to fail are run.
    """
    language = find_language(language) if isinstance(language, str) else language
    if lack := missing(language):
        return lack
    for number, wanted in (("2", "ok"), ("7", "failed")):
        result = run(language_job(language, language.probe.replace(SUM, number)))
        if result.status != wanted:
            lines = [*result.stderr.strip().splitlines(), *result.stdout.strip().splitlines()]
            reason = "; ".join(filter(None, [result.detail, *lines[:1]]))
            return f"{language.title}: a program that must be {wanted!r} is {result.status!r} ({reason})"[:500]
    return None
