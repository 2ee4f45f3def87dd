"""Completion in a repository: code cut out of the files of a Git repository that the user names, to be put back.

Judged by exact match, white space at the ends aside; the score is the edit similarity, as in RepoBench (Liu et al.
2023) and CrossCodeEval (Ding et al. 2023). Nothing is run. The problems depend only on what the files contain.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from os import fsdecode
from pathlib import Path, PurePosixPath
from random import Random

from codemill.chat.repository import RepositoryFiles
from codemill.errors import CodemillError, UsageError
from codemill.eval.edit_similarity import edit_similarity
from codemill.eval.repository_holes import KINDS, Hole, cut_holes
from codemill.eval.suite import Answer, DataSource, Judgement, Problem, Prompt, Run, Style, Suite, SuiteOptions
from codemill.host_git import GitError, run_git

MOST_PROBLEMS = 1_000
PREFIX_CHARS, SUFFIX_CHARS, CONTEXT_CHARS = 12_000, 4_000, 12_000
_MAX_TOKENS: Mapping[str, int] = {"line": 128, "span": 384, "function": 512}
_MOST_CANDIDATES = 30
_FEWEST_LINES = 10
_LONGEST_LINE = 1_000  # characters; no person writes such lines

LANGUAGES: Mapping[str, tuple[str, ...]] = {
    "c": (".c", ".h"),
    "cpp": (".cc", ".cpp", ".cxx", ".hpp", ".hh", ".h"),
    "csharp": (".cs",),
    "dart": (".dart",),
    "go": (".go",),
    "java": (".java",),
    "javascript": (".js", ".jsx", ".mjs", ".cjs"),
    "julia": (".jl",),
    "kotlin": (".kt",),
    "lua": (".lua",),
    "perl": (".pl", ".pm"),
    "php": (".php",),
    "python": (".py", ".pyi"),
    "r": (".r", ".R"),
    "ruby": (".rb",),
    "rust": (".rs",),
    "scala": (".scala",),
    "shell": (".sh", ".bash"),
    "sql": (".sql",),
    "swift": (".swift",),
    "typescript": (".ts", ".tsx"),
}
_ALIASES = {"c++": "cpp", "c#": "csharp", "cs": "csharp", "js": "javascript", "ts": "typescript", "py": "python"}
_VENDORED = frozenset(
    "node_modules vendor vendored _vendor third_party third-party thirdparty external extern bower_components"
    " site-packages dist build target .venv venv .tox .git __pycache__".split()
)
_GENERATED_NAME = re.compile(
    r"\.min\.|_pb2|\.pb\.|\.generated\.|\.g\.|\.designer\.|^bundle\.|^parsetab\.", re.IGNORECASE
)
_GENERATED_HEAD = re.compile(r"@generated|do not edit|auto-?generated|automatically generated", re.IGNORECASE)


@dataclass(frozen=True)
class Checkout:
    """The repository. Where it lies is no part of the data set, so `repr` does not say."""

    name: str
    files: RepositoryFiles = field(repr=False)


class RepositoryCompletion(Suite):
    """`--data` is the repository, or any folder. `variant`: "line", "span" or "function"; by default all of them.
    `language`: only files in that language."""

    name = "repository"
    title = "Repository completion"
    styles = ("fim", "base")
    cut_prompts = True

    def __init__(self, options: SuiteOptions = SuiteOptions()) -> None:  # noqa: B008
        super().__init__(options)
        if options.variant not in (None, *KINDS):
            raise UsageError(f"repository has no variant {options.variant!r}; it has {', '.join(KINDS)}")
        self._suffixes = _suffixes(options.language)

    def source(self) -> DataSource:
        return DataSource()

    def load(self, path: Path) -> list[Problem]:
        if not path.is_dir():
            raise CodemillError(f"{path} is no folder: the repository suite takes a repository")
        root = path.resolve()
        paths = [each for each in _tracked(root) if _is_inside(root, each)]
        checkout = Checkout(root.name, RepositoryFiles(root, tuple(sorted(paths))))
        wanted = [each for each in checkout.files.paths if PurePosixPath(each).suffix in self._suffixes]
        problems = [problem for each in wanted for problem in self._problems(checkout, each)]
        if not problems:
            raise CodemillError(f"{path} holds no source file that something could be cut out of")
        return sorted(problems, key=lambda problem: _digest(problem.task_id))[:MOST_PROBLEMS]

    def _problems(self, checkout: Checkout, path: str) -> Iterator[Problem]:
        text = checkout.files.read(path)
        if not _is_source(path, text):
            return
        random = Random(_digest(f"{path}\0{text}"))
        for hole in cut_holes(text, PurePosixPath(path).suffix, random):
            if self.options.variant in (None, hole.kind):
                yield _problem(checkout, path, text, hole)

    def prompt(self, problem: Problem, style: Style) -> Prompt:
        fields = problem.fields
        max_tokens = _MAX_TOKENS[fields["kind"]]
        if style == "base":
            return Prompt(text=fields["prefix"], max_tokens=max_tokens)
        checkout: Checkout = fields["checkout"]
        return Prompt(
            prefix=fields["prefix"],
            suffix=fields["suffix"],
            context_files=tuple(_context(checkout.files, fields["path"], fields["prefix"] + fields["suffix"])),
            path=fields["path"],
            repo_name=checkout.name,
            max_tokens=max_tokens,
        )

    def clean(self, problem: Problem, raw: str, style: Style) -> Answer:
        """A single line is one line. What follows only a prefix has no end of its own: it is cut to as many lines as
        the hole has, or where the function ends."""
        kind, hole = problem.fields["kind"], problem.fields["canonical_solution"]
        if kind == "line":
            return Answer(_lines(raw, 1))
        if style == "fim":
            return Answer(raw)
        if kind == "span":
            return Answer(_lines(raw, sum(bool(line.strip()) for line in hole.split("\n"))))
        return Answer(_while_indented(raw, problem.fields["prefix"].rpartition("\n")[2]))

    def judge(self, problem: Problem, answer: Answer, run: Run) -> Judgement:
        wanted, text = problem.fields["canonical_solution"].strip(), answer.text.strip()
        similarity = edit_similarity(text, wanted)
        if text == wanted:
            return Judgement("ok", score=similarity)
        return Judgement("failed", f"not what was cut out (edit similarity {similarity:.2f})", score=similarity)

    def gold(self, problem: Problem) -> Answer | None:
        return Answer(problem.fields["canonical_solution"])

    def summary(self, judgements: Sequence[Judgement]) -> Mapping[str, float]:
        scores = [judgement.score for judgement in judgements if judgement.score is not None]
        return {"edit_similarity": sum(scores) / len(scores)} if scores else {}


def _suffixes(language: str | None) -> frozenset[str]:
    if language is None:
        return frozenset(suffix for suffixes in LANGUAGES.values() for suffix in suffixes)
    name = _ALIASES.get(language.lower(), language.lower())
    if name not in LANGUAGES:
        raise UsageError(f"repository knows no files in {language!r}; it knows {', '.join(LANGUAGES)}")
    return frozenset(LANGUAGES[name])


def _tracked(root: Path) -> Sequence[str]:
    """What Git tracks below a folder; all files where it is no checkout."""
    try:
        listing = run_git(root, ["ls-files", "-z", "--cached"]).stdout
    except GitError:
        listing = b""
    return [fsdecode(name) for name in listing.split(b"\0") if name] or RepositoryFiles.scan(root).paths


def _is_inside(root: Path, path: str) -> bool:
    """Whether a regular file lies in the repository itself: no link leads to it, out of it or round about."""
    full = root / path
    try:
        return full.is_file() and full.resolve() == full
    except OSError:
        return False


def _is_source(path: str, text: str) -> bool:
    """Whether a person wrote the file, here. Binary and large files come as empty texts."""
    name = PurePosixPath(path)
    if not _VENDORED.isdisjoint(name.parts[:-1]) or _GENERATED_NAME.search(name.name):
        return False
    lines = text.split("\n")
    if len(lines) < _FEWEST_LINES or max(map(len, lines)) > _LONGEST_LINE:
        return False
    return not _GENERATED_HEAD.search("\n".join(lines[:10]))


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def _problem(checkout: Checkout, path: str, text: str, hole: Hole) -> Problem:
    """What is far from the hole is left out: no model is asked with more."""
    fields = {
        "checkout": checkout,
        "path": path,
        "kind": hole.kind,
        "line": hole.line,
        "prefix": text[: hole.start][-PREFIX_CHARS:],
        "suffix": text[hole.end :][:SUFFIX_CHARS],
        "canonical_solution": text[hole.start : hole.end],
    }
    return Problem(f"{hole.kind}/{path}:{hole.line}", fields)


def _context(files: RepositoryFiles, path: str, text: str) -> list[tuple[str, str]]:
    """The files that help most, the most related last, as far as there is room for them."""
    chosen: list[tuple[str, str]] = []
    room = CONTEXT_CHARS
    for other in files.related(path, text)[:_MOST_CANDIDATES]:
        content = files.read(other)
        if content.strip() and len(content) <= room:
            chosen.insert(0, (other, content))
            room -= len(content)
    return chosen


def _lines(text: str, count: int) -> str:
    """The first lines that are not blank, with the blank ones between them."""
    kept: list[str] = []
    for line in text.lstrip("\r\n").split("\n"):
        if count == 0:
            break
        kept.append(line)
        count -= bool(line.strip())
    return "\n".join(kept)


def _while_indented(text: str, indent: str) -> str:
    """The lines up to the first that stands further left; the first line follows `indent` in the prompt. Comments and
    `#pragma` may stand further left, but do not end a function."""
    width = len(indent.expandtabs(8))
    lines = text.split("\n")
    end = 1
    for i, line in enumerate(lines[1:], 1):
        code = line.lstrip()
        is_inside = len(line[: len(line) - len(code)].expandtabs(8)) >= width
        if code and not is_inside and not code.startswith("#"):
            break
        end = i + 1 if code and is_inside else end
    return "\n".join(lines[:end])
