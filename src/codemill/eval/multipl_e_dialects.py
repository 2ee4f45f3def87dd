"""What MultiPL-E's prompts and tests look like in each language: see the translators in its repository's
`dataset_builder/`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from codemill.errors import UsageError
from codemill.sandbox.languages import Language, find_language, missing

MARK = "codemill: all tests ran"

_KEYWORD = r"\b(?:def|function|func|fn|sub)\s+(\w+)"
_TYPED = r"^[^\n]*?(\w+)[ \t]*\([^\n]*\s*\Z"  # the last line
_TYPED_DEFINITION = r"[\w>\]&*)]\s+NAME\s*\([^;{}]{0,600}+\{"


@dataclass(frozen=True)
class Dialect:
    """MultiPL-E in one language.

    codes: how the language is written in file names and in the field `language`, the authors' way first. signature:
    what finds the function's name in a prompt (its last match counts). definition: what finds the function in an
    answer, NAME in its name's place. imports: lines that a prompt has in front of the function. closes: the tests begin
    with the brace that ends the function; with `in_class`, they end with the one of the class around it. main: where an
    answer's own main function begins. ending: a statement after the last test that prints MARK, `depth` closing braces
    before the end. proof: what shows that the tests ran to their end. libraries: glob patterns of files that tests
    need -> the Debian package.
    """

    codes: tuple[str, ...]
    language: str
    definition: str
    signature: str = _KEYWORD
    imports: str = r"(?!)"
    closes: bool = False
    in_class: bool = False
    main: str | None = None
    ending: str = ""
    depth: int = 0
    proof: str = MARK
    libraries: Mapping[str, str] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """The authors' name of the language, such as "rs"."""
        return self.codes[0]

    @property
    def fence(self) -> str:
        """What stands after the backticks of a code block."""
        return self.toolchain.name.removesuffix("-test")

    @property
    def toolchain(self) -> Language:
        """What runs it."""
        return find_language(self.language)

    @property
    def packages(self) -> tuple[str, ...]:
        """Debian 12's packages for the toolchain and the libraries of the tests; none if Debian has not got it."""
        return (*self.toolchain.packages, *self.libraries.values()) if self.toolchain.packages else ()

    def missing(self) -> str | None:
        """What this host lacks to run the tests, in one line with the command that brings it, or None."""
        if lack := missing(self.toolchain):
            return lack
        absent = {pattern: package for pattern, package in self.libraries.items() if not any(Path("/").glob(pattern))}
        if not absent:
            return None
        files = " and ".join(f"/{pattern}" for pattern in absent)
        return f"{self.toolchain.title}: {files} not found: apt-get install {' '.join(absent.values())}"

    def function_name(self, prompt: str) -> str | None:
        """The function that a prompt begins."""
        names = re.findall(self.signature, prompt, re.MULTILINE)
        return names[-1] if names else None

    def find_definition(self, code: str, name: str) -> int | None:
        """Where code defines the function, if it does."""
        found = re.search(self.definition.replace("NAME", re.escape(name)), code, re.MULTILINE)
        return found.start() if found else None


_DIALECTS = (
    Dialect(
        codes=("py", "python"),
        language="python",
        definition=r"^(?:async )?def NAME\b",
        signature=r"^def (\w+)",
        imports=r"^(?:from\s+\S+\s+import\b|import\s).*$",
        proof="",
    ),
    Dialect(
        codes=("cpp",),
        language="cpp",
        definition=_TYPED_DEFINITION,
        signature=_TYPED,
        imports=r"^(?:#include\b|using\b).*$",
        closes=True,
        main=r"^(?:int|auto|void|signed)\s+main\s*\(",
        ending=f'    std::puts("{MARK}");\n',
        depth=1,
    ),
    Dialect(
        codes=("java",),
        language="java",
        definition=_TYPED_DEFINITION,
        signature=_TYPED,
        imports=r"^import\s[^\n]*;[ \t]*$",
        closes=True,
        in_class=True,
        main=r"^[ \t]*(?:public\s+)?static\s+(?:final\s+)?void\s+main\s*\(",
        ending=f'    System.out.println("{MARK}");\n',
        depth=2,
        libraries={"usr/share/java/javatuples.jar": "libjavatuples-java"},
    ),
    Dialect(
        codes=("js", "javascript"),
        language="javascript",
        definition=r"\bfunction\*?\s+NAME\b|\b(?:const|let|var)\s+NAME\s*=",
        ending=f'console.log("{MARK}");\n',
    ),
    Dialect(
        codes=("ts", "typescript"),
        language="typescript",
        definition=r"\bfunction\*?\s+NAME\b|\b(?:const|let|var)\s+NAME\s*[:=]",
        ending=f'console.log("{MARK}");\n',
    ),
    Dialect(
        codes=("go", "go_test.go"),
        language="go-test",
        definition=r"^func\s+NAME\s*[(\[]",
        proof="PASS",
    ),
    Dialect(
        codes=("rs", "rust"),
        language="rust",
        definition=r"\bfn\s+NAME\b",
        imports=r"^use\s[^\n]*;[ \t]*$",
        closes=True,
        main=r"^(?:pub\s+)?fn\s+main\s*\(",
        ending=f'    println!("{MARK}");\n',
        depth=1,
    ),
    Dialect(
        codes=("rb", "ruby"),
        language="ruby",
        definition=r"^[ \t]*def\s+(?:self\.)?NAME\b",
        proof="\n100% passed",
        libraries={"usr/share/rubygems-integration/all/gems/test-unit-*/lib/test/unit.rb": "ruby-test-unit"},
    ),
    Dialect(
        codes=("php",),
        language="php",
        definition=r"\bfunction\s+&?NAME\s*\(",
        imports=r"^<\?php",
        ending=f'echo "{MARK}\\n";\n',
    ),
    Dialect(
        codes=("pl", "perl"),
        language="perl",
        definition=r"\bsub\s+NAME\b",
        ending=f'print "\\n{MARK}\\n";\n',
        libraries={"usr/share/perl5/Test/Deep.pm": "libtest-deep-perl"},
    ),
    Dialect(
        codes=("lua",),
        language="lua",
        definition=r"\bfunction\s+(?:\w+[.:])?NAME\b|\bNAME\s*=\s*function\b",
        proof="\nOK",
        libraries={"usr/share/lua/5.4/luaunit.lua": "lua-unit"},
    ),
    Dialect(
        codes=("r",),
        language="r",
        definition=r"\bNAME\s*(?:<-|=)\s*function\b",
        signature=r"^\s*([\w.]+)\s*<-\s*function\b",
        ending=f'cat("{MARK}\\n")\n',
    ),
    Dialect(
        codes=("sh", "bash"),
        language="bash",
        definition=r"^[ \t]*(?:function\s+)?NAME\s*\(\s*\)|^[ \t]*function\s+NAME\b",
        signature=r"^(\w+)\s*\(\)",
        closes=True,
        ending=f'echo "{MARK}"\n',
    ),
    Dialect(
        codes=("cs", "csharp"),
        language="csharp",
        definition=_TYPED_DEFINITION,
        signature=_TYPED,
        imports=r"^using\s[^\n(=]*;[ \t]*$",
        closes=True,
        in_class=True,
        main=r"^[ \t]*(?:public\s+|private\s+|internal\s+)?static\s+(?:async\s+)?(?:void|int|Task)\s+Main\s*\(",
        ending=f'    System.Console.WriteLine("{MARK}");\n',
        depth=2,
    ),
    Dialect(
        codes=("scala",),
        language="scala",
        definition=r"\bdef\s+NAME\b",
        imports=r"^import\s[^\n]*$",
        closes=True,
        in_class=True,
        main=r"^[ \t]*(?:override\s+)?def\s+main\s*\(",
        ending=f'    println("{MARK}");\n',
        depth=2,
    ),
    Dialect(
        codes=("d", "dlang"),
        language="d",
        definition=_TYPED_DEFINITION,
        signature=_TYPED,
        imports=r"^import\s[^\n]*;[ \t]*$",
        main=r"^(?:void|int|auto)\s+main\s*\(",
        proof="passed unittests",
    ),
    Dialect(
        codes=("rkt", "racket"),
        language="racket",
        definition=r"\(define\s+\(?NAME[\s)]",
        signature=r"^\(define\s+\(?([^\s()]+)",
        imports=r"^#lang[^\n]*",
        ending=f'(displayln "{MARK}")\n',
    ),
    Dialect(
        codes=("jl", "julia"),
        language="julia",
        definition=r"\bfunction\s+NAME\b|^NAME\s*\([^\n]*\)[^\n=]*=",
        ending=f'println("{MARK}")\n',
    ),
    Dialect(
        codes=("swift",),
        language="swift",
        definition=r"\bfunc\s+NAME\b",
        closes=True,
        ending=f'print("{MARK}")\n',
    ),
)
DIALECTS: Mapping[str, Dialect] = MappingProxyType({dialect.code: dialect for dialect in _DIALECTS})


def find_dialect(name: str) -> Dialect:
    """The dialect of a language's code, name or alias. Raises UsageError with the codes there are."""
    plain = name.strip().lower()
    for dialect in _DIALECTS:
        if plain in dialect.codes or plain in dialect.toolchain.aliases:
            return dialect
    raise UsageError(f"MultiPL-E has no language {name!r} here: it has {', '.join(DIALECTS)}")
