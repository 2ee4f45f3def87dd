"""Which files of a repository are found, and in what order they are related to one of them."""

import subprocess
from pathlib import Path

import pytest

from codemill.chat.repository import MAX_FILE_BYTES, RepositoryFiles
from codemill.errors import UsageError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("text\n")
    return root


def test_without_git_every_file_but_those_of_tools(tmp_path: Path) -> None:
    make(tmp_path, "a.py", "b/c.py", ".venv/lib/d.py", "node_modules/e.js", "b/__pycache__/f.pyc")
    assert RepositoryFiles.scan(tmp_path).paths == ("a.py", "b/c.py")


def test_with_git_what_it_tracks_or_would(tmp_path: Path) -> None:
    make(tmp_path, "tracked.py", "new.py", "ignored.py", "dist/tracked.py", "deep/größe.py")
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    for arguments in (["init", "--quiet"], ["add", "tracked.py", "dist"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    names = RepositoryFiles.scan(tmp_path).paths
    assert set(names) == {".gitignore", "tracked.py", "new.py", "dist/tracked.py", "deep/größe.py"}
    assert set(RepositoryFiles.scan(tmp_path / "deep").paths) == {"größe.py"}


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no directory"):
        RepositoryFiles.scan(make(tmp_path, "a.py") / "a.py")


def test_paths_relative_to_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = RepositoryFiles.scan(make(tmp_path / "shop", "app/main.py"))
    assert files.name == "shop"
    assert files.relative(tmp_path / "shop/app/../app/main.py") == "app/main.py"
    monkeypatch.chdir(tmp_path / "shop/app")
    assert files.relative(Path("main.py")) == "app/main.py"
    assert RepositoryFiles(Path(".."), ()).name == "shop"
    with pytest.raises(UsageError, match="does not lie in the repository"):
        files.relative(tmp_path / "other.py")


@pytest.mark.parametrize("content", [b"a\0b", b"caf\xe9", b"x" * (MAX_FILE_BYTES + 1), None])
def test_a_file_that_is_no_help_reads_as_empty(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.py").write_bytes(content)
    assert RepositoryFiles(tmp_path, ()).read("a.py") == ""


def related(path: str, text: str, *others: str) -> list[str]:
    return RepositoryFiles(Path("nowhere"), tuple(sorted((path, *others)))).related(path, text)


@pytest.mark.parametrize(
    ("path", "text", "imported"),
    [
        ("src/app/main.py", "import app.prices\n", "src/app/prices.py"),
        ("src/app/main.py", "    import app.prices as p\n", "src/app/prices.py"),
        ("src/app/main.py", "from app.prices import total\n", "src/app/prices.py"),
        ("src/app/main.py", "from app import x, prices as p\n", "src/app/prices.py"),
        ("src/app/main.py", "from app import (\n    x,\n    prices,\n)\n", "src/app/prices.py"),
        ("src/app/main.py", "from . import prices\n", "src/app/prices.py"),
        ("src/app/main.py", "from .prices import total\n", "src/app/prices.py"),
        ("src/app/main.py", "from ..far.prices import total\n", "src/far/prices.py"),
        ("src/app/main.py", "from app.prices import total\n", "src/app/prices/__init__.py"),
        ("src/main.ts", 'import { total } from "./shop/prices";\n', "src/shop/prices.ts"),
        ("src/main.ts", 'import total from "../src/prices.js";\n', "src/prices.ts"),
        ("src/main.js", "const p = require('./prices')\n", "src/prices/index.js"),
        ("src/main.ts", 'import u from "./prices.dto";\n', "src/prices.dto.ts"),
        ("src/main.c", '#include "prices.h"\n', "include/prices.h"),
        ("src/main.cc", "#  include <shop/prices.hpp>\n", "include/shop/prices.hpp"),
        ("src/main.rs", "mod prices;\n", "src/prices.rs"),
        ("src/main.rs", "pub mod prices;\n", "src/prices/mod.rs"),
        ("src/main.rs", "use crate::prices::Total;\n", "src/prices.rs"),
        ("src/main.rs", "use super::shop::prices::{Total, Sum};\n", "src/shop/prices.rs"),
        ("src/main.rs", "use crate::{prices, other};\n", "src/prices.rs"),
        ("src/a/Main.java", "import com.shop.Prices;\n", "lib/com/shop/Prices.java"),
    ],
)
def test_an_imported_file_comes_first(path: str, text: str, imported: str) -> None:
    stem, suffix = path.rsplit(".", 1)
    near = [f"{stem}s.{suffix}", f"{stem}_more.{suffix}"]
    assert related(path, text, *near, imported)[0] == imported
    assert related(path, "", *near, imported)[0] != imported


@pytest.mark.parametrize("text", ["import os\n", "from . import\n", "from x import *\n", "", "use;\n", '#include ""\n'])
def test_what_imports_nothing_of_the_repository(text: str) -> None:
    assert related("a.py", text, "zzz.py", "ab.py") == ["ab.py", "zzz.py"]


@pytest.mark.parametrize(
    ("path", "pair"),
    [
        ("src/prices.py", "tests/deep/test_prices.py"),
        ("src/prices.go", "src/prices_test.go"),
        ("tests/test_prices.py", "src/prices.py"),
        ("src/prices_test.go", "src/prices.go"),
        ("src/prices.c", "include/prices.h"),
    ],
)
def test_then_the_test_of_a_file_or_the_file_of_a_test(path: str, pair: str) -> None:
    folder, suffix = path.rsplit("/", 1)[0], path.rsplit(".", 1)[1]
    assert related(path, "", f"{folder}/prices_more.{suffix}", pair)[0] == pair


def test_then_files_of_the_same_folder_and_of_like_names() -> None:
    order = related("src/app/main.py", "", "src/app/zzz.py", "src/other/zzz.py", "tests/zzz.py", "src/app/maint.py")
    assert order == ["src/app/maint.py", "src/app/zzz.py", "src/other/zzz.py", "tests/zzz.py"]
    assert related("main.py", "", "deep/zzz.py", "zzz.py") == ["zzz.py", "deep/zzz.py"]


def test_only_files_of_the_same_kind() -> None:
    assert related("a.py", "", "b.py", "c.pyi", "d.md", "e.js") == ["c.pyi", "b.py"]
    assert set(related("a.ts", "", "b.js", "c.tsx", "d.py")) == {"b.js", "c.tsx"}
    assert related("a.lua", "", "b.lua", "c.py") == ["b.lua"]
