"""The programming languages that the sandbox runs, and what each needs of a Debian 12 host.

A program is one source file. Commands run in the work directory, one after the other until one fails; they need no
network, no daemon and no home directory. docs/toolchains.md has the table for readers.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from codemill.sandbox.job import MIB, Limits

MAIN = "{main}"  # in `run`: the class that holds the main method
PUBLIC = "{public}"  # in `file` and `build`: the class that Java wants the file to be named after
SUM = "{sum}"  # in `probe`: 2 makes a program that ends well, any other number one that fails

# Compilers and virtual machines have threads by the dozen and large heaps. Measured for the tests of MultiPL-E: at most
# 4 s of CPU time, 230 MiB, 17 threads and 10 MiB of files. The margin is for slower machines and larger programs.
_COMPILER = Limits(cpu_seconds=30.0, memory=2048 * MIB, disk=256 * MIB, processes=256, open_files=1024)
_PROGRAM = Limits()
_VIRTUAL_MACHINE = Limits(memory=2048 * MIB, processes=256, open_files=1024)

_JVM = ("-XX:+UseSerialGC", "-XX:ActiveProcessorCount=2", "-Xmx1g")  # the same threads and heap on every machine
_JVM_OF_COMPILER = tuple(f"-J{flag}" for flag in (*_JVM, "-XX:TieredStopAtLevel=1"))  # half the time in so short a run
_JVM_PROBES = ("socket(family 2)", "socket(family 10)")  # its file library looks for IPv4 and IPv6 when it is loaded
_JAVATUPLES, _SCALA_LIBRARY = "/usr/share/java/javatuples.jar", "/usr/share/java/scala-library.jar"
_GO = {"GO111MODULE": "off", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOMAXPROCS": "2", "GOFLAGS": "-p=2"}

# Mono's own listener reports a failed Debug.Assert and goes on, so that the program still exits with 0.
_EXIT_ON_ASSERT = b"""sealed class AssertListener : System.Diagnostics.TraceListener {
    public override void Write(string text) { System.Console.Error.Write(text); }
    public override void WriteLine(string text) { System.Console.Error.WriteLine(text); }
    public override void Fail(string text, string detail) {
        System.Console.Error.WriteLine("Assertion failed. " + text + " " + detail);
        System.Console.Error.WriteLine(System.Environment.StackTrace);
        System.Environment.Exit(134);
    }
}
"""
_LISTENERS = b"""<configuration><system.diagnostics><trace><listeners>
<clear/><add name="exit" type="AssertListener, main"/>
</listeners></trace></system.diagnostics></configuration>
"""


@dataclass(frozen=True, eq=False)
class Language:
    """How programs of one language are run.

    file: what the source is stored as; other `files` lie beside it. build: commands that make of it what `run` runs.
    executables: what must be on the sandbox's PATH; `version` is the command that asks the first of them. packages: of
    Debian 12, empty where it has none; then `home` is where else the toolchain comes from. probe: a program to check
    the toolchain with. limits: of the program itself. tolerated: see `Job`.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    file: str
    run: tuple[str, ...]
    executables: tuple[str, ...]
    version: tuple[str, ...]
    packages: tuple[str, ...]
    probe: str
    build: tuple[tuple[str, ...], ...] = ()
    build_limits: Limits = _COMPILER
    limits: Limits = _PROGRAM
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    home: str = ""
    tolerated: tuple[str, ...] = ()


TOOLCHAINS = (
    Language(
        name="python",
        title="Python",
        aliases=("py", "python3"),
        file="main.py",
        run=(),  # the source goes to the warm interpreter
        executables=(),
        version=(sys.executable, "--version"),
        packages=("python3",),
        probe="import math\nassert math.gcd(2, 4) == {sum}\n",
    ),
    Language(
        name="c",
        title="C",
        aliases=(),
        file="main.c",
        build=(("gcc", "main.c", "-o", "main", "-lm"),),
        run=("./main",),
        executables=("gcc",),
        version=("gcc", "-dumpfullversion"),
        packages=("gcc", "libc6-dev"),
        probe="#include <assert.h>\n#include <math.h>\nint main(int n, char **a) { assert(sqrt(4.0 * n) == {sum}); }\n",
    ),
    Language(
        name="cpp",
        title="C++",
        aliases=("c++", "cxx", "cc"),
        file="main.cpp",
        build=(("g++", "-std=c++17", "main.cpp", "-o", "main"),),
        run=("./main",),
        executables=("g++",),
        version=("g++", "-dumpfullversion"),
        packages=("g++",),
        probe="#include <bits/stdc++.h>\nint main() { std::vector<int> v{1, 1}; assert(v.size() == {sum}); }\n",
    ),
    Language(
        name="java",
        title="Java",
        aliases=(),
        file="{public}.java",
        build=(("javac", *_JVM_OF_COMPILER, "-encoding", "UTF-8", "-cp", f".:{_JAVATUPLES}", "{public}.java"),),
        run=("java", *_JVM, "-ea", "-cp", f".:{_JAVATUPLES}", MAIN),
        executables=("javac", "java"),
        version=("javac", "-version"),
        packages=("default-jdk-headless",),
        probe="import java.util.*;\nclass Probe {\n    public static void main(String[] args) {\n"
        "        assert new ArrayList<Integer>(List.of(1, 1)).size() == {sum};\n    }\n}\n",
        limits=_VIRTUAL_MACHINE,
        tolerated=_JVM_PROBES,
    ),
    Language(
        name="javascript",
        title="JavaScript",
        aliases=("js", "node", "nodejs"),
        file="main.js",
        run=("node", "main.js"),
        executables=("node",),
        version=("node", "--version"),
        packages=("nodejs",),
        probe="require('node:assert').deepEqual([1, 1].length, {sum});\n",
        limits=_VIRTUAL_MACHINE,
    ),
    Language(
        name="typescript",
        title="TypeScript",
        aliases=("ts",),
        file="main.ts",
        # Checking TypeScript's own declarations again would double the time.
        build=(("tsc", "--target", "esnext", "--skipLibCheck", "main.ts"),),
        run=("node", "main.js"),
        executables=("tsc", "node"),
        version=("tsc", "--version"),
        packages=("node-typescript", "nodejs"),
        probe="const n: number = [1, 1].length;\nif (n !== {sum}) throw new Error(`${n}`);\n",
        limits=_VIRTUAL_MACHINE,
    ),
    Language(
        name="go",
        title="Go",
        aliases=("golang",),
        file="main.go",
        build=(("go", "build", "-o", "main", "main.go"),),
        run=("./main",),
        executables=("go",),
        version=("go", "version"),
        packages=("golang-go",),
        probe='package main\n\nimport "strings"\n\nfunc main() {\n\tif strings.Count("cheese", "e") != {sum}+1 {\n'
        '\t\tpanic("probe")\n\t}\n}\n',
        environment=_GO,
    ),
    Language(
        name="go-test",
        title="Go test",
        aliases=("go_test.go",),
        file="main_test.go",
        # What `go test` does in one command; what `go vet` complains about fails here too.
        build=(("go", "test", "-c", "-o", "main", "main_test.go"),),
        run=("./main", "-test.paniconexit0"),
        executables=("go",),
        version=("go", "version"),
        packages=("golang-go",),
        probe='package probe_test\n\nimport "testing"\n\nfunc TestProbe(t *testing.T) {\n\tif len("ab") != {sum} {\n'
        '\t\tt.Fatal("probe")\n\t}\n}\n',
        environment=_GO,
    ),
    Language(
        name="rust",
        title="Rust",
        aliases=("rs",),
        file="main.rs",
        build=(("rustc", "--edition", "2021", "-C", "codegen-units=1", "main.rs", "-o", "main"),),
        run=("./main",),
        executables=("rustc", "cc"),
        version=("rustc", "--version"),
        packages=("rustc-web",),
        probe="fn main() {\n    assert_eq!(vec![1, 1].len(), {sum});\n}\n",
    ),
    Language(
        name="ruby",
        title="Ruby",
        aliases=("rb",),
        file="main.rb",
        run=("ruby", "main.rb"),
        executables=("ruby",),
        version=("ruby", "--version"),
        packages=("ruby",),
        probe="raise 'probe' unless [1, 1].sum == {sum}\n",
    ),
    Language(
        name="php",
        title="PHP",
        aliases=(),
        file="main.php",
        run=("php", "main.php"),
        executables=("php",),
        version=("php", "--version"),
        packages=("php-cli",),
        probe='<?php\nif (count(array(1, 1)) !== {sum}) { throw new Exception("probe"); }\n',
    ),
    Language(
        name="perl",
        title="Perl",
        aliases=("pl",),
        file="main.pl",
        run=("perl", "main.pl"),
        executables=("perl",),
        version=("perl", "-e", "print $^V"),
        packages=("perl",),
        probe="use strict;\nuse List::Util qw(sum);\ndie 'probe' unless sum(1, 1) == {sum};\n",
    ),
    Language(
        name="lua",
        title="Lua",
        aliases=(),
        file="main.lua",
        run=("lua5.4", "main.lua"),
        executables=("lua5.4",),
        version=("lua5.4", "-v"),
        packages=("lua5.4",),
        probe="assert(#{1, 1} == {sum})\n",
    ),
    Language(
        name="r",
        title="R",
        aliases=("rscript",),
        file="main.R",
        run=("Rscript", "main.R"),
        executables=("Rscript",),
        version=("Rscript", "--version"),
        packages=("r-base-core",),
        probe="stopifnot(length(c(1, 1)) == {sum})\n",
    ),
    Language(
        name="bash",
        title="Bash",
        aliases=("sh", "shell"),
        file="main.sh",
        run=("bash", "main.sh"),
        executables=("bash",),
        version=("bash", "-c", "echo $BASH_VERSION"),
        packages=("bash",),
        probe='set -e\n[[ $(printf "%s\\n" a b | sort | wc -l) -eq {sum} ]]\n',
    ),
    Language(
        name="csharp",
        title="C#",
        aliases=("cs", "c#"),
        file="main.cs",
        build=(("mcs", "-d:DEBUG", "-r:System.Numerics", "main.cs", "assert_listener.cs", "-out:main.exe"),),
        run=("mono", "main.exe"),
        executables=("mono", "mcs"),
        version=("mono", "--version"),
        packages=("mono-mcs", "libmono-system-core4.0-cil", "libmono-system-numerics4.0-cil"),
        probe="using System.Diagnostics;\nusing System.Linq;\nclass Probe {\n    static void Main() {\n"
        "        Debug.Assert(new[] {1, 1}.Sum() == {sum});\n    }\n}\n",
        limits=_VIRTUAL_MACHINE,
        files={"assert_listener.cs": _EXIT_ON_ASSERT, "main.exe.config": _LISTENERS},
    ),
    Language(
        name="scala",
        title="Scala",
        aliases=(),
        file="main.scala",
        # The library's own launcher starts a second compiler just to find the class.
        build=(("scalac", *_JVM_OF_COMPILER, "-d", ".", "main.scala"),),
        run=("java", *_JVM, "-cp", f".:{_SCALA_LIBRARY}", MAIN),
        executables=("scalac", "java"),
        version=("scalac", "-version"),
        packages=("scala", "default-jre-headless"),
        probe="object Probe {\n    def main(args: Array[String]): Unit = {\n"
        "        assert(List(1, 1).sum == {sum})\n    }\n}\n",
        limits=_VIRTUAL_MACHINE,
        tolerated=_JVM_PROBES,
    ),
    Language(
        name="d",
        title="D",
        aliases=("dlang",),
        file="main.d",
        build=(("ldc2", "-unittest", "main.d", "-of=main"),),
        run=("./main",),
        executables=("ldc2", "cc"),
        version=("ldc2", "--version"),
        packages=("ldc", "gcc", "libc6-dev"),
        probe="import std.algorithm;\nunittest { assert([1, 1].sum == {sum}); }\nvoid main() {}\n",
    ),
    Language(
        name="racket",
        title="Racket",
        aliases=("rkt",),
        file="main.rkt",
        # A failed check of rackunit leaves the exit status alone; its log knows.
        run=(
            "racket",
            "-l",
            "racket/base",
            "-t",
            "main.rkt",
            "-l",
            "rackunit/log",
            "-e",
            "(void (test-log #:exit? #t))",
        ),
        executables=("racket",),
        version=("racket", "--version"),
        packages=("racket",),
        probe="#lang racket\n(require rackunit)\n(check-equal? (length (list 1 1)) {sum})\n",
        limits=_VIRTUAL_MACHINE,
    ),
    Language(
        name="julia",
        title="Julia",
        aliases=("jl",),
        file="main.jl",
        run=("julia", "--startup-file=no", "main.jl"),
        executables=("julia",),
        version=("julia", "--version"),
        packages=(),
        probe="using Test\n@testset begin\n    @test length([1, 1]) == {sum}\nend\n",
        limits=_VIRTUAL_MACHINE,
        home="https://julialang.org/downloads",
    ),
    Language(
        name="swift",
        title="Swift",
        aliases=(),
        file="main.swift",
        build=(("swiftc", "main.swift", "-o", "main"),),
        run=("./main",),
        executables=("swiftc",),
        version=("swiftc", "--version"),
        packages=(),
        probe="assert([1, 1].count == {sum})\n",
        home="https://www.swift.org/install",
    ),
)
