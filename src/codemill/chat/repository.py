"""Which other files of a repository help to complete one of them: those it imports, those near it by name."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile
from pathlib import Path, PurePosixPath

from codemill.errors import UsageError
from codemill.host_git import GitError, run_git

MAX_FILE_BYTES = 100_000
_SKIPPED_FOLDERS = {".git", ".venv", "node_modules", "__pycache__", "build", "dist", "target"}
_MODULE_NAMES = (
    re.compile(r"^\s*from\s+([\w.]+)\s+import\s+(\([^)]*|[\w., ]*)", re.MULTILINE),  # Python
    re.compile(r"^\s*import\s+([\w.]+)()", re.MULTILINE),  # Python, Java, Kotlin, Scala
    re.compile(r"""(?:from|import|require)\s*\(?\s*["']([^"']+?)(?:\.[cm]?[jt]sx?)?["']()"""),  # JavaScript, TypeScript
    re.compile(r"""^\s*#\s*include\s*["<]([^">]+?)(?:\.\w+)?[">]()""", re.MULTILINE),  # C, C++
    re.compile(r"^\s*(?:pub\s+)?(?:use|mod)\s+([\w:]+?)(?:::(\{[^}]*|\w+)\}?)?\s*;", re.MULTILINE),  # Rust
)


@dataclass(frozen=True)
class RepositoryFiles:
    """The text files below `root`, by path relative to it with `/`."""

    root: Path
    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.root.resolve().name

    @classmethod
    def scan(cls, root: Path) -> "RepositoryFiles":
        """What Git tracks or would track, or every file where `root` is no Git checkout."""
        if not root.is_dir():
            raise UsageError(f"--repo {root} is no directory")
        return cls(root, tuple(sorted(_git_files(root) or _walk(root))))

    def relative(self, path: Path) -> str:
        """`path` as the repository calls it. Raises UsageError for a file outside it."""
        try:
            return path.resolve().relative_to(self.root.resolve()).as_posix()
        except ValueError:
            raise UsageError(f"{path} does not lie in the repository {self.root}") from None

    def read(self, path: str) -> str:
        """The text of a file, empty if it is large, binary or gone: such a file is no help."""
        try:
            data = (self.root / path).read_bytes()
            return "" if len(data) > MAX_FILE_BYTES or b"\0" in data else data.decode("utf-8")
        except (OSError, UnicodeDecodeError):
            return ""

    def related(self, path: str, text: str) -> list[str]:
        """Other files of the same kind, the most related first: imported ones, then by likeness of their paths."""
        imported = _imported_names(text)
        stem = PurePosixPath(path).stem
        pairs = {f"test_{stem}", f"{stem}_test", stem.removeprefix("test_").removesuffix("_test")}
        suffixes = _kindred_suffixes(PurePosixPath(path).suffix)
        others = [other for other in self.paths if other != path and PurePosixPath(other).suffix in suffixes]

        def relatedness(other: str) -> tuple[bool, bool, float]:
            pair = PurePosixPath(other).stem in pairs
            return _is_imported(other, imported), pair, _likeness(path, other)

        return sorted(others, key=lambda other: (relatedness(other), other), reverse=True)


def _git_files(root: Path) -> list[str]:
    try:
        done = run_git(root, ["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    except GitError:
        return []
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name] if done.returncode == 0 else []


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        yield from ((Path(folder) / name).relative_to(root).as_posix() for name in names)


def _imported_names(text: str) -> set[str]:
    """Module paths that `text` names, as endings without suffix: `import a.b` and `from a import b` give `a/b`."""
    names: set[str] = set()
    for pattern in _MODULE_NAMES:
        for module, members in pattern.findall(text):
            base = module if "/" in module else re.sub(r"(::|\.)+", "/", module)
            base = re.sub(r"^(\.*/|(crate|self|super)(/|$))*", "", base)
            names.add(base)
            names.update(f"{base}/{member.split()[0]}" for member in members.strip("({").split(",") if member.strip())
    return {name.strip("/") for name in names} - {""}


def _is_imported(other: str, imported: set[str]) -> bool:
    module = "/" + str(PurePosixPath(other).with_suffix(""))
    module = re.sub(r"/(__init__|index|mod)$", "", module)
    return any(module.endswith("/" + name) for name in imported)


def _likeness(path: str, other: str) -> float:
    """Shared folders count most, then the likeness of the names."""
    here, there = PurePosixPath(path), PurePosixPath(other)
    folders = zip(here.parent.parts, there.parent.parts, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], folders))
    depth = max(len(here.parts), len(there.parts))
    return (shared + 1) / depth + SequenceMatcher(None, here.stem, there.stem).ratio()


def _kindred_suffixes(suffix: str) -> set[str]:
    families = (
        {".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh"},
        {".js", ".jsx", ".ts", ".tsx", ".mjs", ".cjs"},
        {".py", ".pyi"},
        {".java", ".kt", ".scala"},
    )
    return next((family for family in families if suffix in family), {suffix})
