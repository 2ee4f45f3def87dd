"""Repositories that try to have Git run something, or show what lies elsewhere."""

import os
import subprocess
from pathlib import Path

import pytest

from codemill.agent.workflows.git_diff import read_diff, untracked
from codemill.errors import CodemillError
from codemill.host_git import GitError, find_repository, run_git


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", "-C", root, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)


def make(root: Path, text: str = "one\n") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "init", "-q", root], check=True)
    (root / "a.txt").write_text(text)
    git(root, "add", ".")
    git(root, "commit", "-qm", "x")
    return root


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (tmp_path / ".gitconfig").write_text("[protocol]\n\tallow = always\n")


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A program that leaves a mark."""
    path = tmp_path / "trap.sh"
    path.write_text(f"#!/bin/sh\ntouch {tmp_path}/caught\ncat\n")
    path.chmod(0o755)
    return path


def look(root: Path) -> None:
    """All that is asked of Git in somebody's repository."""
    (root / "a.txt").write_text("two\n")
    (root / "new.txt").write_text("new\n")
    os.utime(root / "a.txt", (1, 1))
    changed = read_diff(root)
    assert [file.path for file in changed] == ["a.txt"]
    assert changed[0].hunks[0].lines == ("-one", "+two")
    assert "new.txt" in untracked(root)
    read_diff(root, staged=True)
    read_diff(root, "HEAD")
    run_git(root, ["ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory"])


SETTINGS = [
    ("core.fsmonitor", "{trap}"),
    ("filter.evil.clean", "{trap}"),
    ("filter.evil.process", "{trap}"),
    ("filter.evil.smudge", "{trap}"),
    ("filter.a=b.clean", "{trap}"),
    ("filter.Evil Two.clean", "{trap}"),
    ("diff.external", "{trap}"),
    ("diff.evil.command", "{trap}"),
    ("diff.evil.textconv", "{trap}"),
    ("core.pager", "{trap}"),
    ("pager.diff", "{trap}"),
    ("pager.ls-files", "{trap}"),
    ("alias.diff", "!{trap}"),
    ("alias.ls-files", "!{trap}"),
    ("core.sshCommand", "{trap}"),
    ("core.askPass", "{trap}"),
    ("core.gitProxy", "{trap}"),
    ("core.editor", "{trap}"),
    ("credential.helper", "!{trap}"),
    ("interactive.diffFilter", "{trap}"),
    ("gpg.program", "{trap}"),
    ("core.alternateRefsCommand", "{trap}"),
    ("uploadpack.packObjectsHook", "{trap}"),
    ("hook.evil.command", "{trap}"),
]


@pytest.mark.parametrize(("name", "value"), SETTINGS, ids=[name for name, _ in SETTINGS])
@pytest.mark.parametrize("place", [".gitattributes", ".git/info/attributes"])
@pytest.mark.parametrize("attributes", ["*.txt filter=evil diff=evil\n", "*.txt filter=a=b\n"])
def test_programs_of_the_configuration(tmp_path, trap, name, value, place, attributes):
    root = make(tmp_path / "work")
    (root / ".git/info").mkdir(exist_ok=True)
    (root / place).write_text(attributes)
    git(root, "config", name, value.format(trap=trap))
    git(root, "config", name.rpartition(".")[0] + ".required", "true")
    look(root)
    assert not (tmp_path / "caught").exists()


def test_the_trap_is_one(tmp_path, trap):
    """Without these precautions Git does run it."""
    for number, name in enumerate(("core.fsmonitor", "filter.evil.clean", "diff.evil.textconv", "filter.a=b.clean")):
        root = make(tmp_path / f"work{number}")
        (root / ".gitattributes").write_text("*.txt filter=a=b\n" if "=" in name else "*.txt filter=evil diff=evil\n")
        git(root, "config", name, str(trap))
        (root / "a.txt").write_text("two\n")
        subprocess.run(["git", "-C", root, "diff"], capture_output=True, check=True)
        assert (tmp_path / "caught").exists(), name
        (tmp_path / "caught").unlink()


def test_settings_of_files_that_are_included_and_of_worktrees(tmp_path, trap):
    root = make(tmp_path / "work")
    (root / "settings").write_text(f'[filter "evil"]\n\tclean = {trap}\n')
    (root / ".gitattributes").write_text("*.txt filter=evil\n")
    git(root, "config", "include.path", "../settings")
    git(root, "config", "extensions.worktreeConfig", "true")
    git(root, "config", "--worktree", "filter.evil.process", str(trap))
    look(root)
    assert not (tmp_path / "caught").exists()


def test_hooks(tmp_path, trap):
    root = make(tmp_path / "work")
    git(root, "config", "core.hooksPath", str(tmp_path / "hooks"))
    for folder in (tmp_path / "hooks", root / ".git/hooks"):
        folder.mkdir(exist_ok=True)
        for name in ("post-index-change", "post-checkout", "reference-transaction", "fsmonitor-watchman"):
            (folder / name).write_text(trap.read_text())
            (folder / name).chmod(0o755)
    look(root)
    assert not (tmp_path / "caught").exists()


def test_objects_that_are_missing_are_not_fetched(tmp_path, trap):
    root = make(tmp_path / "work")
    git(root, "config", "remote.origin.url", f"ssh://x@127.0.0.1/{root}")
    for name, value in (("promisor", "true"), ("uploadpack", str(trap)), ("partialclonefilter", "blob:none")):
        git(root, "config", f"remote.origin.{name}", value)
    git(root, "config", "core.repositoryformatversion", "1")
    git(root, "config", "extensions.partialClone", "origin")
    for url in (f"ssh://x@127.0.0.1/{root}", f"ext::{trap}", f"file://{root}"):
        git(root, "config", "remote.origin.url", url)
        git(root, "config", "core.sshCommand", str(trap))
        for path in (root / ".git/objects").glob("??/*"):
            path.unlink()
        with pytest.raises(CodemillError):
            read_diff(root, "HEAD")
    assert not (tmp_path / "caught").exists()


class TestSubmodules:
    @pytest.fixture
    def root(self, tmp_path, trap):
        inner = make(tmp_path / "inner")
        root = make(tmp_path / "work")
        git(root, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner), "sub")
        git(root, "commit", "-qm", "with a submodule")
        return root

    def test_with_settings_of_their_own(self, root, trap, tmp_path):
        module = root / ".git/modules/sub"
        for name in ("core.fsmonitor", "filter.evil.clean", "diff.evil.textconv", "diff.external"):
            subprocess.run(["git", "config", "--file", module / "config", name, trap], check=True)
        (root / "sub/.gitattributes").write_text("* filter=evil diff=evil\n")
        (root / "sub/a.txt").write_text("three\n")
        look(root)
        assert not (tmp_path / "caught").exists()
        look(root / "sub")
        assert not (tmp_path / "caught").exists()

    def test_are_known_by_their_way_back(self, root):
        found = find_repository(root / "sub")
        assert found.work_tree == str(root / "sub")
        subprocess.run(["git", "config", "--file", root / ".git/modules/sub/config", "core.worktree", "/"], check=True)
        with pytest.raises(GitError, match="does not lead back"):
            find_repository(root / "sub")

    def test_a_folder_of_a_submodule(self, root):
        (root / "sub/deep").mkdir()
        assert find_repository(root / "sub/deep").work_tree == str(root / "sub")


class TestElsewhere:
    @pytest.fixture
    def private(self, tmp_path):
        return make(tmp_path / "private", "the-hidden-word\n")

    @pytest.mark.parametrize("kind", ["file", "link", "commondir"])
    def test_a_git_that_is_another_repositorys(self, tmp_path, private, kind):
        root = tmp_path / "work"
        root.mkdir()
        (root / "a.txt").write_text("mine\n")
        if kind == "file":
            (root / ".git").write_text(f"gitdir: {private}/.git\n")
        elif kind == "link":
            (root / ".git").symlink_to(private / ".git")
        else:
            subprocess.run(["git", "init", "-q", root], check=True)
            (root / ".git/commondir").write_text(f"{private}/.git\n")
        with pytest.raises(GitError, match="does not lead back"):
            read_diff(root)

    def test_a_working_tree_that_lies_elsewhere(self, tmp_path):
        root = make(tmp_path / "work")
        (tmp_path / "private").mkdir()
        (tmp_path / "private/a.txt").write_text("the-hidden-word\n")
        git(root, "config", "core.worktree", str(tmp_path / "private"))
        look(root)
        assert "hidden" not in str(read_diff(root))

    def test_a_bare_repository_that_lies_in_the_tree(self, tmp_path, trap):
        bare = make(tmp_path / "work") / "inner"
        subprocess.run(["git", "init", "-q", "--bare", bare], check=True)
        subprocess.run(["git", "config", "--file", bare / "config", "core.fsmonitor", trap], check=True)
        subprocess.run(["git", "config", "--file", bare / "config", "core.worktree", tmp_path], check=True)
        with pytest.raises(GitError):
            find_repository(bare)
        assert not (tmp_path / "caught").exists()

    def test_data_beside_the_working_tree_needs_a_word_of_the_user(self, tmp_path, monkeypatch):
        root = tmp_path / "work"
        subprocess.run(["git", "init", "-q", "--separate-git-dir", tmp_path / "data", root], check=True)
        (root / "a.txt").write_text("one\n")
        git(root, "add", ".")
        git(root, "commit", "-qm", "x")
        with pytest.raises(GitError, match=f"GIT_DIR={tmp_path}/data"):
            read_diff(root)
        monkeypatch.setenv("GIT_DIR", str(tmp_path / "data"))
        monkeypatch.chdir(root)
        (root / "a.txt").write_text("two\n")
        assert [file.path for file in read_diff(root)] == ["a.txt"]


def test_a_linked_worktree(tmp_path):
    main = make(tmp_path / "main")
    git(main, "worktree", "add", "-q", str(tmp_path / "linked"))
    look(tmp_path / "linked")
    assert find_repository(tmp_path / "linked").work_tree == str(tmp_path / "linked")


def test_a_pre_commit_hook_sees_what_is_staged_for_the_commit(tmp_path, monkeypatch):
    root = make(tmp_path / "work")
    (root / "b.txt").write_text("b\n")
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    git(root, "add", "b.txt")
    assert [file.path for file in read_diff(root, staged=True)] != []
    monkeypatch.setenv("GIT_DIR", ".git")
    monkeypatch.chdir(root)
    assert "b.txt" in [file.path for file in read_diff(root, staged=True)]


def test_no_repository_and_no_git(tmp_path, monkeypatch):
    with pytest.raises(GitError, match="lies in no Git repository"):
        run_git(tmp_path, ["status"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GitError, match="cannot be run"):
        run_git(tmp_path, ["status"])


def test_a_git_that_does_not_read_settings_from_variables(tmp_path, monkeypatch):
    """As before 2.31."""
    root = make(tmp_path / "work")
    program = tmp_path / "bin/git"
    program.parent.mkdir()
    real = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
    program.write_text(f'#!/bin/sh\nunset GIT_CONFIG_COUNT\nexec {real} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises(GitError, match=r"older than 2\.31"):
        run_git(root, ["status"])
