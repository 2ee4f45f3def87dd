"""Languages: every toolchain of this host runs a right and a wrong program, and what is lacking is said."""

from dataclasses import replace
from pathlib import Path

import pytest

from codemill.errors import UsageError
from codemill.sandbox import Job, Limits, RunResult, SandboxPool, languages
from codemill.sandbox.languages import (
    LANGUAGES,
    Language,
    check_toolchain,
    find_executable,
    find_language,
    installed_version,
    language_job,
    missing,
)

QUICK = ("python", "bash", "perl", "javascript", "cpp")
MULTIPL_E_CODES = dict(
    pair.split(":")
    for pair in (
        "py:python cpp:cpp java:java js:javascript ts:typescript go:go go_test.go:go-test rs:rust rb:ruby php:php "
        "pl:perl lua:lua r:r sh:bash cs:csharp scala:scala d:d rkt:racket jl:julia swift:swift"
    ).split()
)


def each_language(quick: bool = True) -> list[object]:
    marks = {name: () if name in QUICK and quick else (pytest.mark.slow,) for name in LANGUAGES}
    return [pytest.param(language, id=name, marks=marks[name]) for name, language in LANGUAGES.items()]


def needs(language: Language) -> None:
    if lack := missing(language):
        pytest.skip(lack)


@pytest.mark.parametrize(("code", "name"), MULTIPL_E_CODES.items())
def test_codes_of_multipl_e_name_languages(code: str, name: str) -> None:
    assert find_language(code) is LANGUAGES[name]
    assert find_language(f" {name.upper()} ") is LANGUAGES[name]


def test_an_unknown_language_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no language 'cobol'.*python, c, cpp, java"):
        find_language("cobol")
    with pytest.raises(UsageError, match="no language 'cobol'"):
        language_job("cobol", "")


def test_no_name_means_two_languages() -> None:
    names = [name for language in LANGUAGES.values() for name in (language.name, *language.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=list(LANGUAGES))
def test_every_language_says_where_it_comes_from_and_how_to_check_it(language: Language) -> None:
    assert bool(language.packages) != bool(language.home)
    assert "{sum}" in language.probe
    assert bool(language.run) == bool(language.executables) == (language.name != "python")


def test_python_goes_to_the_warm_interpreter() -> None:
    job = language_job("py", "print(1)", stdin="x", files={"a.txt": b"a"})
    assert (job.source, job.commands, job.stdin, job.files) == (b"print(1)", (), b"x", {"a.txt": b"a"})


def test_other_languages_are_built_and_run_with_limits_of_their_own() -> None:
    language, limits = LANGUAGES["cpp"], Limits(cpu_seconds=1.0)
    job = language_job("cpp", "int main() {}", limits, stdin="x", files={"a.h": b"a"})
    assert job.build == ((find_executable("g++") or "g++", *language.build[0][1:]),)
    assert job.commands == (("./main",),)
    assert job.files == {"a.h": b"a", "main.cpp": b"int main() {}"}
    assert (job.stdin, job.limits, job.build_limits) == (b"x", limits, language.build_limits)


def test_source_may_hold_what_no_encoder_takes() -> None:
    job = language_job("lua", "-- \ud800\0")
    assert job.files["main.lua"] == b"-- \xed\xa0\x80\0"


@pytest.mark.parametrize(
    ("source", "main", "file"),
    [
        (
            "class Problem {\n    static class In {}\n    public static void main(String[] args) {}\n}\n",
            "Problem",
            "Problem",
        ),
        ("// class of\nclass Solution {}\npublic class Main {\n static void main(String[] a) {}\n}\n", "Main", "Main"),
        ("class A { public static void main(String[] args) {} }\npublic class B {}\n", "A", "B"),
        ("public final class Over {\n}\nclass Under {\n}\n", "Over", "Over"),
        ("interface Shape {}\nrecord Point(int x) {}\n", "Shape", "Shape"),
        ("int x;", "Main", "Main"),
    ],
)
def test_the_class_with_the_main_method_is_started(source: str, main: str, file: str) -> None:
    job = language_job("java", source)
    assert list(job.files) == [f"{file}.java"]
    assert job.build[0][-1] == f"{file}.java"
    assert job.commands[0][-1] == main


def test_a_scala_object_is_started() -> None:
    source = "case class Pair(a: Int)\nobject Problem extends App {\n}\n"
    job = language_job("scala", source)
    assert job.commands[0][-1] == "Problem"


def test_a_missing_toolchain_is_named_with_its_package() -> None:
    absent = replace(LANGUAGES["racket"], executables=("no-such-racket",))
    assert missing(absent) == (
        "Racket: no-such-racket not found in /usr/local/bin:/usr/bin:/bin: apt-get install racket"
    )
    assert installed_version(absent) is None


def test_a_language_that_debian_lacks_says_so() -> None:
    absent = replace(LANGUAGES["swift"], executables=("no-such-swiftc",))
    assert "Debian 12 has no package of it; it comes from https://" in (missing(absent) or "")


def test_a_program_outside_the_system_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("#!/bin/sh\n")
    (tmp_path / "real").chmod(0o755)
    (tmp_path / "tool").symlink_to(tmp_path / "real")
    (tmp_path / "shell").symlink_to("/bin/sh")
    monkeypatch.setattr(languages, "_PATH", (str(tmp_path),))
    assert find_executable("tool") is None
    assert find_executable("shell") == str(tmp_path / "shell")
    assert find_executable("nothing") is None


@pytest.mark.parametrize("language", each_language())
def test_a_toolchain_passes_right_programs_and_fails_wrong_ones(language: Language, pool: SandboxPool) -> None:
    needs(language)
    results: list[RunResult] = []

    def run(job: Job) -> RunResult:
        results.append(pool.run(job))
        return results[-1]

    assert check_toolchain(language, run) is None
    assert [result.status for result in results] == ["ok", "failed"]


@pytest.mark.parametrize("language", each_language())
def test_the_version_is_known(language: Language) -> None:
    needs(language)
    version = installed_version(language)
    assert version is not None
    assert version[0].isdigit()


def test_a_toolchain_that_passes_everything_is_at_fault() -> None:
    fault = check_toolchain("python", lambda job: RunResult("ok", exit_code=0))
    assert fault == "Python: a program that must be 'failed' is 'ok' ()"


def test_a_toolchain_that_passes_nothing_is_at_fault() -> None:
    broken = RunResult("failed", exit_code=1, stderr="cc1plus: no such file\n", detail="exit status 1")
    fault = check_toolchain("python", lambda job: broken)
    assert fault == "Python: a program that must be 'ok' is 'failed' (exit status 1; cc1plus: no such file)"


def test_a_compiler_has_time_of_its_own(pool: SandboxPool) -> None:
    """A program's CPU limit that its compiler would exceed."""
    needs(LANGUAGES["cpp"])
    source = '#include <bits/stdc++.h>\n#include <regex>\nint main() { std::regex r("a+"); }\n'
    result = pool.run(language_job("cpp", source, Limits(cpu_seconds=0.2, wall_seconds=5.0)))
    assert result.status == "ok", result


def test_standard_input_and_files_reach_a_program(pool: SandboxPool) -> None:
    needs(LANGUAGES["bash"])
    result = pool.run(language_job("sh", 'read -r line; echo "$line $(cat a.txt)"', stdin="x\n", files={"a.txt": b"y"}))
    assert (result.status, result.stdout) == ("ok", "x y\n")
