# ruff: noqa: E501 - a table of commands, one a line
"""Nothing that commands do to repositories makes the user's own Git run something, outside the sandbox."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from codemill.sandbox.git_folders import find_git_folders, read_settings, what_it_runs
from codemill.sandbox.worker import IsolationError
from codemill.sandbox.workspace_shell import WorkspaceShell

Open = Callable[..., WorkspaceShell]
IDENTITY = '[user]\nname = Ada\nemail = ada@example.org\n[protocol "file"]\nallow = always\n'


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    (folder / "project").mkdir(parents=True)
    (folder / ".gitconfig").write_text(IDENTITY)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    return folder


@pytest.fixture
def project(home: Path) -> Path:
    return home / "project"


@pytest.fixture
def open_shell(project: Path) -> Iterator[Open]:
    made: list[WorkspaceShell] = []

    def open_one(workspace: Path | None = None) -> WorkspaceShell:
        try:
            made.append(WorkspaceShell(workspace or project))
        except IsolationError as error:
            pytest.skip(str(error))
        return made[-1]

    yield open_one
    for shell in made:
        shell.close()


@pytest.fixture
def trap(home: Path) -> str:
    """A program that leaves a mark if it runs outside."""
    path = home / "trap.sh"
    path.write_text(f"#!/bin/sh\ntouch {home}/caught\n")
    path.chmod(0o755)
    return str(path)


def git(root: Path, *words: str, check: bool = True) -> str:
    return subprocess.run(["git", "-C", root, *words], capture_output=True, check=check).stdout.decode(errors="replace")


def make(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    git(root, "init", "-q", "-b", "main")
    (root / "a").write_text("a\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "a")
    return root


def use(root: Path) -> None:
    """What a person does next, or their editor at once."""
    for words in (["status"], ["diff"], ["add", "-A"], ["commit", "-qm", "x"], ["checkout", "-q", "-"], ["log", "-p"]):
        git(root, *words, check=False)
        for inner in root.rglob("*"):
            if inner.is_dir() and ".git" not in inner.relative_to(root).parts:
                git(inner, *words, check=False)


# fmt: off
ATTEMPTS = [
    "mkdir -p .git/hooks; cp $T .git/hooks/post-checkout; cp $T .git/hooks/pre-commit; cp $T .git/hooks/post-index-change",
    "mkdir x; cp $T x/pre-commit; cp $T x/post-index-change; git config core.hooksPath x; rm -r .git/hooks; ln -s ../x .git/hooks",
    "git config core.fsmonitor $T; printf '[core]\nfsmonitor = %s\n' $T >> .git/config",
    "git config extensions.worktreeConfig true; printf '[core]\nfsmonitor = %s\n' $T > .git/config.worktree",
    "cp -r .git .old; git config -f .old/config core.fsmonitor $T; mv .git x; mv .old .git",
    "printf '[core]\nfsmonitor = %s\n' $T > c; git config include.path ../c; cat .git/config c > d; ln -sf ../d .git/config",
    "git config filter.x.clean $T; echo '* filter=x' > .gitattributes",
    "mkdir evil; cp -r .git/* evil; git config -f evil/config core.fsmonitor $T; echo $PWD/evil > .git/commondir",
    # A repository of its own, which `git status` enters if it is one of the index.
    "git init -q new; git -C new commit -q --allow-empty -m x; git -C new config core.fsmonitor $T; git add new",
    "git init -q new; git -C new commit -q --allow-empty -m x; cp $T new/.git/hooks/pre-commit; git add new; echo x > new/f",
    "git init -q new; git -C new config core.hooksPath $PWD/h; mkdir h; cp $T h/pre-commit; cp $T h/post-index-change",
    "git init -q new; printf '[core] fsmonitor = %s\n' $T >> new/.git/config; git -C new commit -q --allow-empty -m x",
    "git init -q new; printf '[include]\npath = ../../c\n' >> new/.git/config; printf '[core]\nfsmonitor=%s\n' $T > c",
    "git init -q new; mv new/.git/config c; ln -s ../../c new/.git/config; printf '[core]\nfsmonitor=%s\n' $T >> c",
    "git init -q new; mv new/.git data; echo 'gitdir: ../data' > new/.git; git config -f data/config core.fsmonitor $T",
    "git init -q new; mv new/.git data; ln -s ../data new/.git; git config -f data/config core.fsmonitor $T",
    "git init -q new; rm -r new/.git/hooks; ln -s ../../h new/.git/hooks; mkdir h; cp $T h/pre-commit; echo x > new/f",
    "git init -q new; mkdir -p c/objects; mv new/.git/config new/.git/refs c; echo ../../c > new/.git/commondir;"
    " git config -f c/config core.fsmonitor $T",
    "mkdir -p bare/objects bare/refs; echo 'ref: refs/heads/x' > bare/HEAD;"
    " printf '[core]\nrepositoryformatversion = 0\nbare = false\nworktree = ..\nfsmonitor = %s\n' $T > bare/config",
    "git worktree add -q tree; git config extensions.worktreeConfig true;"
    " git config -f .git/worktrees/tree/config.worktree core.fsmonitor $T",
    "git worktree add -q tree; mkdir c; cp -r .git/objects .git/refs .git/config c; git config -f c/config core.fsmonitor $T;"
    " echo $PWD/c > .git/worktrees/tree/commondir",
    "git -c protocol.file.allow=always submodule --quiet add $PWD sub; git config -f .git/modules/sub/config core.fsmonitor $T",
    "git -c protocol.file.allow=always submodule --quiet add $PWD sub; cp $T .git/modules/sub/hooks/pre-commit; echo x > sub/f",
    "git init -q new; printf '\\357\\273\\277[core]\n\tfsmonitor = %s\n' $T > new/.git/config",
    "git init -q new; printf '[core]\nrepositoryformatversion = 0\n[core] FsMonitor = \"%s\"\n' $T > new/.git/config",
    "git init -q new; printf '[user]\nname = \"x\\\n\"\n[core]\nfsmonitor = %s\n' $T > new/.git/config",
]
# fmt: on


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_what_commands_do_is_not_run_by_the_users_git(project, home, trap, open_shell, attempt):
    make(project)
    open_shell().run(attempt.replace("$T", trap))
    use(project)
    assert not (home / "caught").exists()


def test_the_trap_is_one(project, home, trap):
    """The same commands outside of the sandbox."""
    caught = []
    for number, attempt in enumerate(ATTEMPTS):
        root = make(project / str(number))
        subprocess.run(["bash", "-c", attempt.replace("$T", trap)], cwd=root, capture_output=True, check=False)
        use(root)
        caught.append((home / "caught").exists())
        (home / "caught").unlink(missing_ok=True)
    assert not [attempt for attempt, is_caught in zip(ATTEMPTS, caught, strict=True) if not is_caught]


class TestWhatIsThereAtTheStart:
    def test_a_repository_in_the_repository(self, project, home, trap, open_shell):
        inner = make(make(project) / "vendor/lib")
        shell = open_shell()
        result = shell.run(
            f"cp {trap} vendor/lib/.git/hooks/post-index-change; git -C vendor/lib config core.fsmonitor {trap};"
            "mv vendor/lib/.git x"
        )
        assert result.status == "failed"
        assert shell.run("cd vendor/lib && echo b > a && git commit -qam b && git log --format=%s").output == "b\na\n"
        use(project)
        assert "b\na\n" in git(inner, "log", "--format=%s")
        assert not (home / "caught").exists()

    def test_a_repository_that_another_is_put_in_the_place_of(self, project, home, trap, open_shell):
        make(make(project) / "vendor/lib")
        result = open_shell().run(
            f"mv vendor/lib old; git init -q vendor/lib; git -C vendor/lib config core.fsmonitor {trap}; git add vendor"
        )
        assert "vendor/lib/.git is no repository any more" in result.detail
        use(project)
        assert not (home / "caught").exists()

    def test_a_submodule(self, project, home, trap, open_shell):
        make(home / "other")
        git(make(project), "submodule", "--quiet", "add", str(home / "other"), "sub")
        git(project, "commit", "-qm", "sub")
        shell = open_shell()
        shell.run(
            f"git config -f .git/modules/sub/config core.fsmonitor {trap}; cp {trap} .git/modules/sub/hooks/pre-commit;"
            f"git init -q x; git -C x config core.fsmonitor {trap}; echo 'gitdir: ../x/.git' > sub/.git; rm sub/.git;"
            "mv x/.git sub/"
        )
        assert (project / "sub/.git").read_text() == "gitdir: ../.git/modules/sub\n"
        use(project)
        assert not (home / "caught").exists()
        assert (
            shell.run("cd sub && echo b > b && git add b && git commit -qm b && git log --format=%s").output == "b\na\n"
        )

    @pytest.mark.parametrize("kind", ["file", "link"])
    def test_data_elsewhere_in_the_workspace(self, project, home, trap, open_shell, kind):
        make(project)
        (project / ".git").rename(project / "data")
        if kind == "file":
            (project / ".git").write_text("gitdir: data\n")
        else:
            (project / ".git").symlink_to("data")
        shell = open_shell()
        result = shell.run(f"cp {trap} data/hooks/post-index-change; git config core.fsmonitor {trap}")
        assert result.status == "failed"
        result = shell.run(f"git init -q x; git -C x config core.fsmonitor {trap}; rm -f .git; ln -s x/.git .git")
        use(project)
        assert not (home / "caught").exists()
        assert git(project, "rev-parse", "--absolute-git-dir").strip() == str(project / "data")

    def test_hooks_that_are_a_link(self, project, home, trap, open_shell):
        make(project)
        (project / "tools").mkdir()
        subprocess.run(["rm", "-r", project / ".git/hooks"], check=True)
        (project / ".git/hooks").symlink_to("../tools")
        shell = open_shell()
        assert shell.run(f"cp {trap} tools/post-index-change").status == "failed"
        result = shell.run(f"rm .git/hooks; mkdir .git/hooks; cp {trap} .git/hooks/post-index-change")
        assert "leads to ../tools again" in result.detail
        use(project)
        assert not (home / "caught").exists()

    def test_settings_that_are_included(self, project, home, trap, open_shell):
        make(project)
        (project / "settings").write_text("[core]\nabbrev = 9\n")
        git(project, "config", "include.path", "../settings")
        shell = open_shell()
        assert shell.run(f"git config -f settings core.fsmonitor {trap}").status == "failed"
        use(project)
        assert not (home / "caught").exists()

    def test_worktrees_of_the_repository(self, project, home, trap, open_shell):
        git(make(project), "worktree", "add", "-q", str(home / "tree"))
        shell = open_shell()
        shell.run(
            f"mkdir evil; cp -r .git/* evil/; git config -f evil/config core.fsmonitor {trap};"
            f"echo {project}/evil > .git/worktrees/tree/commondir; rm .git/worktrees/tree/commondir;"
            "mv .git/worktrees/tree .git/worktrees/x; cp -r .git/worktrees x"
        )
        assert (project / ".git/worktrees/tree/commondir").read_text() == "../..\n"
        use(home / "tree")
        assert not (home / "caught").exists()


class TestNewRepositories:
    @pytest.mark.parametrize(
        "command",
        [
            "git init -q new && cd new && git commit -q --allow-empty -m x && git branch y && git checkout -q y",
            "git clone -q . new && cd new && git branch -q z && git checkout -q z",
            "git worktree add -q new",
            "git -c protocol.file.allow=always submodule --quiet add $PWD/../project new",
            "git init -q new && git -C new remote add origin https://example.org && git -C new config user.name Eve",
        ],
    )
    def test_ordinary_ones_are_left_alone(self, project, open_shell, command):
        make(project)
        shell = open_shell()
        result = shell.run(command)
        assert (result.status, result.detail) == ("ok", "")
        assert shell.run("cd new && git status").status == "ok"

    def test_one_that_is_set_aside_is_told_and_can_be_had_back(self, project, open_shell):
        shell = open_shell()
        result = shell.run("git init -q && cp .git/hooks/pre-commit.sample .git/hooks/pre-commit")
        assert "hooks/pre-commit" in result.detail
        assert "rename HEAD.set-aside to HEAD" in result.detail
        assert git(project, "status", check=False) == ""
        assert shell.run("rm .git/hooks/pre-commit; mv .git/HEAD.set-aside .git/HEAD; git status").detail == ""
        assert "No commits yet" in git(project, "status")

    def test_what_a_background_command_made_is_found_at_the_end(self, project, home, trap, open_shell):
        make(project)
        shell = open_shell()
        shell.start(f"git init -q new; git -C new config core.fsmonitor {trap}; git add new").wait(10)
        shell.close()
        assert "core.fsmonitor" in shell.warnings[0]
        use(project)
        assert not (home / "caught").exists()

    def test_a_link_in_its_place_is_not_followed(self, project, home, open_shell):
        make(home / "other")
        (home / "other/.git/hooks/pre-commit").write_text("")
        (home / "other/.git/hooks/pre-commit").chmod(0o755)
        make(project)
        open_shell().run(f"ln -s {home}/other other; mkdir new; ln -s {home}/other/.git new/.git")
        assert (home / "other/.git/HEAD").exists()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[core]\n\tbare = false\n", ["core.bare"]),
        ("[core] fsmonitor = x\n", ["core.fsmonitor"]),
        ('[Filter "a ] b"]\nClean = x\n', ["filter.clean"]),
        ("# x\n; y\n[a]\nb", ["a.b"]),
        ("[a]\r\n\tb = 1\r\n", ["a.b"]),
        ("[a.b]\nc = 1\n", ["a.b.c"]),
    ],
)
def test_settings(tmp_path, text, names):
    assert [each.name for each in read_settings(text)] == names
    file = tmp_path / "config"
    file.write_text(text)
    listing = subprocess.run(
        ["git", "config", "--file", file, "--list", "--name-only"], capture_output=True, text=True, check=True
    ).stdout
    assert [f"{line.partition('.')[0]}.{line.rpartition('.')[2]}" for line in listing.split("\n")[:-1]] == [
        f"{name.partition('.')[0]}.{name.rpartition('.')[2]}" for name in names
    ]


@pytest.mark.parametrize(
    "text", ["a = b\n", "[a]\nb = c\\\n", "[a\n", "[a]\n= 1\n", "\ufeff[a]\nb=1\n", "[a]\n\x0bb = 1\n"]
)
def test_settings_that_could_be_read_in_another_way(text):
    with pytest.raises(ValueError, match="the setting"):
        list(read_settings(text))


def test_finding(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "a/b")
    (tmp_path / "a/file").mkdir()
    (tmp_path / "a/file/.git").write_text("gitdir: x")
    found, pointers = find_git_folders(str(tmp_path))
    assert sorted(found) == [f"{tmp_path}/a/.git", f"{tmp_path}/a/b/.git"]
    assert pointers == [f"{tmp_path}/a/file/.git"]
    assert what_it_runs(found[1], str(tmp_path)) == []
