"""HumanEvalPack's languages besides Python: how a program is made of an answer and its tests.

After the authors' `humanevalpack.py` in bigcode-evaluation-harness. What an answer goes on with is the prompt: the
declarations, which differ from it in comments and headers alone, lack or break the helpers of some tasks. Where their
tests need a framework, the program brings what they use of it: so it needs nothing but the compiler. Each program says
at its end that it got there.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from codemill.eval.brace_text import code_only, without_block

END = "codemill: all tests ran"


@dataclass(frozen=True)
class Dialect:
    """A language of the suite.

    code: as the suite names it. toolchain: as the sandbox does. fences: names of it behind a Markdown fence.
    definition: a pattern of where the function {name} begins. open_blocks: blocks open behind the declaration.
    program: (record, the answer, whether it is whole) -> the program. tests: finds the names of the test functions,
    which the program calls; None if the tests call themselves.
    """

    code: str
    title: str
    toolchain: str
    fences: tuple[str, ...]
    definition: str
    stops: tuple[str, ...]
    program: Callable[[Mapping[str, Any], str, bool], str]
    open_blocks: int = 1
    tests: re.Pattern[str] | None = None

    def function(self, prompt: str) -> str | None:
        """The name of the function that the prompt ends in: some records call it otherwise in `entry_point`."""
        names = [found[1] for found in _definitions(prompt, self.definition, self.code)]
        return names[-1] if names else None

    def defines(self, text: str, name: str) -> bool:
        """Whether the text has the function's beginning, outside comments and strings."""
        return re.search(self.definition.replace("{name}", re.escape(name)), code_only(text, self.code)) is not None


def _definitions(text: str, definition: str, language: str) -> list[re.Match[str]]:
    return list(re.finditer(definition.replace("{name}", r"(\w+)"), code_only(text, language)))


def helpers(prompt: str, definition: str, answer: str, language: str) -> str:
    """What stands before the function in its prompt: imports, and other functions unless the answer has them."""
    found = _definitions(prompt, definition, language)
    if not found:
        return prompt
    answer_code = code_only(answer, language)
    others = [re.search(definition.replace("{name}", match[1]), answer_code) for match in found[:-1]]
    function = found[0] if any(others) else found[-1]
    return prompt[: prompt.rfind("\n", 0, function.start(1)) + 1]


# In C++ and Java: a name, parameters and a brace. Parentheses may stand in parentheses once.
_CALLABLE = (
    r"(?<![.\w])(?!(?:if|for|while|switch|catch|else|return|new)\b){name}"
    r"\s*+\([^;{}()]*+(?:\([^;{}()]*+\)[^;{}()]*+)*+\)[^;{}()]{0,200}+\{"
)

_JS_DEFINITION = r"(?m:^)(?:export\s+)?(?:default\s+)?(?:async\s+)?(?:const|let|var|function\s*\*?)\s+{name}\b"
_JS_HEAD = (
    "console.assert = (condition, ...message) => {\n"
    "  if (!condition) throw new Error(['assertion failed', ...message].join(' '))\n}\n"
)


def _js(fields: Mapping[str, Any], answer: str, whole: bool) -> str:
    answer = re.sub(r"^export\s+(?:default\s+)?(?=const|let|var|async|function|class)", "", answer, flags=re.M)
    start = helpers(fields["prompt"], _JS_DEFINITION, answer, "js") if whole else fields["prompt"]
    return f"{_JS_HEAD}{start}{answer}\n{fields['test']}\nconsole.log('{END}')\n"


_JAVA_IMPORT = re.compile(r"^[ \t]*+import[ \t]++[\w.* ]++;[ \t]*+\n?", re.MULTILINE)


def _java(fields: Mapping[str, Any], answer: str, whole: bool) -> str:
    prompt, test = fields["prompt"], fields["test"]
    if whole:
        answer = without_block(answer, "java", r"(?:public\s+)?class\s+Main\b")
        answer = re.sub(r"^[ \t]*package\s+[\w.]+;", "", answer, flags=re.MULTILINE)
        answer = re.sub(r"\bpublic\s+((?:final\s+)?class\s+Solution\b)", r"\1", answer)
        if not re.search(r"\bclass\s+Solution\b", code_only(answer, "java")):
            answer = f"{helpers(fields['declaration'], _CALLABLE, answer, 'java')}\n{answer}\n}}\n"
    else:
        answer = prompt + answer
    imports = _JAVA_IMPORT.findall(prompt + "\n" + answer + "\n" + test)
    checked = _before_last_braces(test, 2, f'System.out.println("{END}");')
    body = _JAVA_IMPORT.sub("", f"{answer}\n{checked}")
    return "".join(f"{line.strip()}\n" for line in dict.fromkeys(imports)) + body


def _before_last_braces(test: str, count: int, statement: str) -> str:
    place = len(test)
    for _ in range(count):
        place = test.rfind("}", 0, place)
    return f"{test[:place]}{statement}\n{test[place:]}" if place >= 0 else test


_CPP_HEADERS = (
    "algorithm cassert climits cmath cstdio cstdlib deque fstream iostream list map numeric queue set sstream "
    "stack string vector math.h stdio.h stdlib.h"
).split()
_CPP_HEAD = "".join(f"#include<{header}>\n" for header in _CPP_HEADERS) + "using namespace std;\n"
# Left out of the head unless it is needed: one task's own function is `strlen`, and its tests would call the library's.
_CSTRING = re.compile(r"\b(?:mem(?:set|cpy|cmp|move|chr)|strn?(?:cmp|cpy|cat|tok|str|chr|rchr))\s*+\(")


def _cpp(fields: Mapping[str, Any], answer: str, whole: bool) -> str:
    answer = without_block(answer, "cpp", r"\bint\s+main\s*\(")
    start = helpers(fields["prompt"], _CALLABLE, answer, "cpp") if whole else fields["prompt"]
    test = _before_last_braces(fields["test"], 1, f'puts("{END}");')
    head = _CPP_HEAD if not _CSTRING.search(answer) else f"#include<cstring>\n{_CPP_HEAD}"
    return f"{head}{start}{answer}\n{test}"


_RUST_DEFINITION = r"\bfn\s+{name}\b"
_RUST_MAIN = r"\bfn\s+main\s*\("
_RUST_TEST = re.compile(r"#\[test\]\s*(?:pub\s+)?fn\s+(\w+)")
_RUST_CRATE = re.compile(
    r"^[ \t]*+(?:pub[ \t]++)?use[ \t]++(?!(?:std|core|alloc|crate|self|super|codemill_prelude)\b)"
    r"[^;{}\n]*+(?:\{[^;{}]{0,300}+\})?;",
    re.MULTILINE,
)


def _rust(fields: Mapping[str, Any], answer: str, whole: bool) -> str:
    """Crates are left out: there is no compiler for them here. Tasks that use one fail."""
    answer = without_block(answer, "rust", _RUST_MAIN)
    start = without_block(fields["prompt"], "rust", _RUST_MAIN)
    if whole:
        # What is imported by `*` gives way to what the answer imports or defines under the same name.
        known = re.sub(r"^(?=use\b|fn\b)", "pub ", helpers(start, _RUST_DEFINITION, answer, "rust"), flags=re.M)
        start = f"mod codemill_prelude {{\n{known}\n}}\nuse codemill_prelude::*;\n"
    names = _RUST_TEST.findall(code_only(fields["test"], "rust"))
    # `pub` stands behind the comments that may stand between the attribute and the function.
    test = re.sub(rf"^([ \t]*)(?:pub\s+)?(?=fn\s+(?:{'|'.join(names)})\b)", r"\1pub ", fields["test"], flags=re.M)
    test = test.replace("#[cfg(test)]", "").replace("#[test]", "")
    calls = "".join(f"    tests::{name}();\n" for name in names)
    program = f'{start}{answer}\n{test}\nfn main() {{\n{calls}    println!("{END}");\n}}\n'
    return "#![allow(warnings)]\n" + _RUST_CRATE.sub("", program)


JS = Dialect(
    "js",
    "JavaScript",
    "javascript",
    ("javascript", "js", "jsx", "node", "mjs"),
    _JS_DEFINITION,
    ("\nconst ", "\nfunction ", "\nconsole."),
    _js,
)
JAVA = Dialect("java", "Java", "java", ("java",), _CALLABLE, ("\nclass ", "\npublic class "), _java, open_blocks=2)
CPP = Dialect("cpp", "C++", "cpp", ("cpp", "c++", "cc", "cxx"), _CALLABLE, ("\nint main(", "\n#include"), _cpp)
RUST = Dialect(
    "rust", "Rust", "rust", ("rust", "rs"), _RUST_DEFINITION, ("\nfn main(", "\n#["), _rust, tests=_RUST_TEST
)
