"""From an answer to the program that tests it: MultiPL-E's tests go on where a continued prompt stops, with the brace
that ends the function first. A whole function has to be fitted in between."""

import re
from collections.abc import Sequence

from codemill.eval.brace_text import code_only, end_of_block, without_block
from codemill.eval.multipl_e_dialects import Dialect

_LONGEST = 1 << 20  # characters of an answer that is worth fitting
_BASH_LITERAL = re.compile(r"""\\.|'[^']*+'?|"(?:[^"\\]++|\\.)*+"?|(?:^|(?<=\s))\#[^\n]*""", re.DOTALL | re.MULTILINE)
_GO_IMPORT = re.compile(
    r'^import\s*(?:\((?P<many>[^)]{0,5000}+)\)|(?P<one>(?:[\w.]+\s+)?"[^"\n]*"))[^\n]*\n?', re.MULTILINE
)
_PACKAGE = re.compile(r"^package\s+\w+[^\n]*\n?", re.MULTILINE)
_UNION = re.compile(r"^(union\s+\w+)[^\n]*\n.*?^\};?[ \t]*$", re.MULTILINE | re.DOTALL)
_EXPORT = re.compile(
    r"^export\s+(?:default\s+)?(?=(?:async\s+)?(?:function|const|let|var|class|type|interface|enum)\b)", re.MULTILINE
)


def cut(text: str, stop_tokens: Sequence[str]) -> str:
    """What comes before the first stop token, as the authors' `stop_at_stop_token` does; the end of the text counts as
    the end of a line."""
    ends = [text.find(token) if token in text else len(text) + 1 for token in stop_tokens if token]
    ended = [len(text) + 1 - len(token) for token in stop_tokens if token and (text + "\n").endswith(token)]
    return text[: min([*ends, *ended, len(text)])]


def continued_program(dialect: Dialect, prompt: str, completion: str, tests: str) -> str:
    """The program of an answer that goes on after the prompt, already cut."""
    return f"{prompt}{completion}\n{with_ending(dialect, tests)}"


def whole_program(dialect: Dialect, prompt: str, code: str, tests: str, name: str) -> str:
    """The program of an answer that has the function itself: the prompt's imports, the answer, the tests."""
    tests = with_ending(dialect, tests)
    if len(code) > _LONGEST:
        return f"{code}\n{tests}"
    if dialect.main:
        code = without_block(code, dialect.language, f"(?m){dialect.main}")
    code = _bare(dialect, code)
    if dialect.language == "go-test":
        return _go_program(prompt, code, tests)
    imports = _imports(dialect, prompt, code)
    if dialect.in_class:
        own = re.compile(dialect.imports, re.MULTILINE)
        return "\n".join([*imports, *own.findall(code), _in_class(dialect, own.sub("", code), tests, name)])
    if dialect.closes and not _open_braces(_code_only(dialect, code)):
        tests = _after_function(tests)
    return "\n".join([*imports, code, tests])


def _bare(dialect: Dialect, code: str) -> str:
    """Without what may stand only once in a program or not in one of this kind."""
    if dialect.language == "php":
        return re.sub(r"<\?(?:php\b)?|\?>", "", code)
    if dialect.language == "racket":
        return re.sub(r"^#lang[^\n]*", "", code, flags=re.MULTILINE)
    if dialect.language in ("javascript", "typescript"):
        return _EXPORT.sub("", code)
    return code


def with_ending(dialect: Dialect, tests: str) -> str:
    """The tests with the statement that says that they ran, where there is a place for it."""
    end = _ending_place(dialect, tests)
    if end is None or not dialect.ending:
        return tests
    separator = "" if tests[:end].endswith("\n") else "\n"
    return f"{tests[:end]}{separator}{dialect.ending}{tests[end:]}"


def proof_of_end(dialect: Dialect, tests: str) -> str:
    """What a run prints, to stdout or stderr, if all tests ran; "" if nothing tells."""
    if dialect.ending and _ending_place(dialect, tests) is None:
        return ""
    return dialect.proof


def _ending_place(dialect: Dialect, tests: str) -> int | None:
    found = re.search(r"\s*\}" * dialect.depth + r"\s*\Z", tests) if dialect.depth else None
    if dialect.depth:
        return found.start() if found else None
    return len(tests)


def _after_function(tests: str) -> str:
    """The tests without the brace that ends the function: it has its own."""
    return re.sub(r"\A\s*\}", "", tests)


def _imports(dialect: Dialect, prompt: str, code: str) -> list[str]:
    """Lines that the prompt has before its function, and that the answer lacks."""
    lines = re.findall(dialect.imports, prompt, re.MULTILINE)
    if dialect.language == "rust":  # the only language where a name must not be imported twice
        used = " ".join(re.findall(r"^[ \t]*use\s[^;]{0,2000}+;", code, re.MULTILINE))
        return [line for line in lines if not re.search(rf"\b{re.escape(_last_word(line))}\b", used)]
    if dialect.language == "cpp":
        return lines + [found[0] for found in _UNION.finditer(prompt) if found[1] not in code]
    return lines


def _last_word(line: str) -> str:
    return (re.findall(r"\w+", line) or [line])[-1]


def _code_only(dialect: Dialect, text: str) -> str:
    """Without comments and literals, whose braces mean nothing; everything else stays where it is."""
    if dialect.language == "bash":
        return _BASH_LITERAL.sub(lambda found: " " * len(found[0]), text)
    return code_only(text, dialect.language)


def _open_braces(code: str) -> list[int]:
    """Offsets of the braces that are open at the end, the outermost first. code: see `_code_only`."""
    open_: list[int] = []
    for brace in re.finditer(r"[{}]", code):
        if brace[0] == "{":
            open_.append(brace.start())
        elif open_:
            open_.pop()
    return open_


def _in_class(dialect: Dialect, code: str, tests: str, name: str) -> str:
    """The answer with the tests at the end of the class that has the function; without a class it gets one."""
    place = dialect.find_definition(code, name)
    around = _open_braces(_code_only(dialect, code)[:place])
    if not around:
        kind = "object" if dialect.language == "scala" else "class"
        code = f"{kind} Problem {{\n{code}"  # a brace too many at the answer's end is that of the prompt's class
        around = [code.index("{")]
    plain = _code_only(dialect, code)
    end = end_of_block(plain, around[-1])
    if end is not None:  # the tests bring the brace that ends the class, but the function has its own
        return f"{code[: end - 1]}\n{_after_function(tests)}{code[end:]}"
    is_function_open = len(_open_braces(plain)) > len(around)
    return f"{code}\n{tests if is_function_open else _after_function(tests)}"


def _go_program(prompt: str, code: str, tests: str) -> str:
    """Go wants one package, and every import once and before all else."""
    package = _PACKAGE.search(prompt)
    imports = dict.fromkeys([*_go_imports(prompt), *_go_imports(code)])
    body = _PACKAGE.sub("", _GO_IMPORT.sub("", code), count=1)
    head = [package[0] if package else "package main\n", "import (", *(f"\t{spec}" for spec in imports), ")"]
    return "\n".join([*head, body, tests])


def _go_imports(code: str) -> list[str]:
    specs = []
    for found in _GO_IMPORT.finditer(code):
        lines = found["many"].splitlines() if found["many"] is not None else [found["one"]]
        specs += [spec for line in lines if (spec := line.partition("//")[0].strip())]
    return specs
