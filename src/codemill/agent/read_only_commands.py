"""Commands that only look. For each program, what would make it do more: an option that writes or runs something."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from codemill.agent.shell_words import CommandPart, Word

Check = Callable[[tuple[Word, ...]], bool]


@dataclass(frozen=True)
class _Options:
    """What a program must not be given. short: letters. long: names without dashes; their abbreviations count as well.
    words: of programs whose long options have one dash. most: arguments that are no options, since one more would be a
    file to write."""

    short: str = ""
    long: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    most: int | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.short or self.long or self.words) and self.most is None

    def permit(self, arguments: tuple[Word, ...]) -> bool:
        if not self.is_empty and any(word.may_be_option for word in arguments):
            return False
        plain = [word for word in arguments if not word.value.startswith("-") or word.value == "-"]
        if self.most is not None and (len(plain) > self.most or any(word.is_computed for word in plain)):
            return False
        return not any(self._refuses(word.value) for word in arguments)

    def _refuses(self, argument: str) -> bool:
        if argument.startswith("--") and len(argument) > 2:
            name = argument[2:].partition("=")[0]
            return any(long.startswith(name) for long in self.long)
        if argument in self.words:
            return True
        return argument.startswith("-") and any(letter in argument[1:] for letter in self.short)


_ANY = _Options()
_PLAIN = (
    "ls cat head tail wc pwd echo true false : cd basename dirname realpath readlink stat du df cmp comm cut tr nl tac"
    " rev paste fold expand unexpand column md5sum sha1sum sha256sum sha512sum cksum strings hexdump od readelf"
    " which type whoami id groups uname uptime free nproc ps pgrep lscpu printenv seq sleep egrep fgrep grep"
    " exit return break continue shift locale getconf lsblk tty cal factor numfmt arch"
).split()
_OPTIONS: Mapping[str, _Options] = {
    **dict.fromkeys(_PLAIN, _ANY),
    "diff": _ANY,
    "test": _Options(words=("-v", "-R")),
    "[": _Options(words=("-v", "-R")),
    "printf": _Options(short="v"),
    "date": _Options(short="s", long=("set",)),
    "file": _Options(short="C", long=("compile",)),
    "tree": _Options(short="oR", long=("output",)),
    "uniq": _Options(most=1),
    "xxd": _Options(short="r", long=("revert",), words=("-revert",), most=1),
    "hostname": _Options(short="bF", long=("boot", "file"), most=0),
    "sort": _Options(short="oST", long=("output", "compress-program", "files0-from", "temporary-directory")),
    "rg": _Options(short="z", long=("pre", "pre-glob", "hostname-bin", "search-zip")),
    "fd": _Options(short="xX", long=("exec", "exec-batch")),
    "fdfind": _Options(short="xX", long=("exec", "exec-batch")),
    "jq": _Options(short="fL", long=("from-file", "library-path")),
    "jobs": _Options(short="x"),
    "wait": _Options(short="p"),
    "find": _Options(words=("-delete", "-fprint", "-fprint0", "-fprintf", "-fls", "-files0-from")),
    "command": _ANY,  # only with -v: what it runs otherwise is judged instead
    "exec": _Options(most=0),
    "env": _Options(most=0),
    "xargs": _Options(most=0),
}
_GIT: Mapping[str, _Options] = {
    **dict.fromkeys(
        ("status", "ls-files", "ls-tree", "rev-parse", "describe", "cat-file", "blame", "for-each-ref", "merge-base"),
        _Options(long=("textconv", "filters", "output")),
    ),
    **dict.fromkeys(
        ("diff", "log", "show", "whatchanged", "shortlog", "rev-list", "diff-tree", "diff-index", "diff-files"),
        _Options(long=("output", "ext-diff", "textconv")),
    ),
    "grep": _Options(short="O", long=("open-files-in-pager", "textconv", "ext-grep")),
    "name-rev": _ANY,
    "count-objects": _ANY,
    "check-ignore": _ANY,
    "version": _ANY,
    "branch": _Options(
        short="dDmMcCuft",
        long=(
            "delete",
            "move",
            "copy",
            "set-upstream-to",
            "unset-upstream",
            "force",
            "edit-description",
            "track",
            "create-reflog",
        ),
        most=0,
    ),
    "tag": _Options(short="adsuFfem", long=("annotate", "delete", "sign", "force", "message", "file", "edit"), most=0),
    "remote": _Options(most=0),
}
_GIT_WORDS = (("stash", "list"), ("stash", "show"), ("worktree", "list"), ("config", "--get"), ("config", "--list"))
_GIT_REST = _Options(
    short="e", long=("output", "ext-diff", "textconv", "edit", "add", "unset", "unset-all", "replace-all")
)
# Not those whose project names what is run even then: pytest, yarn, pnpm, poetry, cargo, rustc.
_VERSIONS = (
    "python python3 node npm go gcc g++ clang java javac ruby php perl make cmake pip pip3 git docker uv ruff mypy tsc"
    " deno bun"
).split()
_VERSION_COMMANDS = (("go", "version"), ("docker", "version"))  # to others it is a file, or a target
_SED_PRINTS = re.compile(r"(?:\d+|\$)(?:,(?:\d+|\$|\+\d+))?p")
_AWK_DOES_MORE = re.compile(r"system|getline|[|>@`]|close|fflush|ENVIRON|printf?\s+-")
_HARMLESS_VARIABLE = re.compile(
    r"[a-z_][a-z0-9_]*|LC_ALL|LANG|TZ|NO_COLOR|CI|FORCE_COLOR|COLUMNS|PYTHONDONTWRITEBYTECODE|RUST_BACKTRACE|DEBUG|NODE_ENV"
)
_SHELL_SETTINGS = re.compile(r"[-+][efux]+|[-+]o|pipefail|errexit|nounset|--")


def sets_only_harmless(part: CommandPart) -> bool:
    """Whether no variable is set that could make a program run another one."""
    return all(_HARMLESS_VARIABLE.fullmatch(name) for name in part.assigned)


def is_read_only(part: CommandPart) -> bool:
    """Whether a command is known to change nothing, and to run nothing else."""
    if part.kind == "assign":
        return sets_only_harmless(part)
    if part.kind != "command" or not sets_only_harmless(part):
        return False
    name, arguments = part.name, part.words[1:]
    if name in _VERSIONS and part.values[1:] in (("--version",), ("-V",)):
        return True
    if part.values in _VERSION_COMMANDS:
        return True
    special: Mapping[str, Check] = {"git": _git, "sed": _sed, "awk": _awk, "set": _set, "pip": _pip, "npm": _npm}
    if name in special:
        return special[name](arguments)
    return name in _OPTIONS and _OPTIONS[name].permit(arguments)


def _git(arguments: tuple[Word, ...]) -> bool:
    values = [word.value for word in arguments]
    while values[:1] == ["--no-pager"] or (values[:1] == ["-C"] and len(values) > 1):
        skip = 1 if values[0] == "--no-pager" else 2
        values, arguments = values[skip:], arguments[skip:]
    if not values or arguments[0].is_computed:
        return False
    if tuple(values[:2]) in _GIT_WORDS:
        return _GIT_REST.permit(arguments)
    if values[0] in ("remote", "branch") and values[1:] in (
        ["-v"],
        ["-a"],
        ["-vv"],
        ["--list"],
        ["--show-current"],
        ["-r"],
    ):
        return True
    return values[0] in _GIT and _GIT[values[0]].permit(arguments[1:])


def _sed(arguments: tuple[Word, ...]) -> bool:
    """Only the printing of lines by number: a script of sed can write files and run commands."""
    if len(arguments) < 2 or any(word.may_be_option for word in arguments) or arguments[0].value != "-n":
        return False
    prints = not arguments[1].is_computed and _SED_PRINTS.fullmatch(arguments[1].value)
    return bool(prints) and not any(word.value.startswith("-") for word in arguments[2:])


def _awk(arguments: tuple[Word, ...]) -> bool:
    while len(arguments) > 1 and arguments[0].value.startswith("-F") and not arguments[0].is_computed:
        arguments = arguments[1:] if len(arguments[0].value) > 2 else arguments[2:]
    if not arguments or arguments[0].is_computed or any(word.value.startswith("-") for word in arguments):
        return False
    return not _AWK_DOES_MORE.search(arguments[0].value) and not any(word.may_be_option for word in arguments[1:])


def _set(arguments: tuple[Word, ...]) -> bool:
    return bool(arguments) and all(_SHELL_SETTINGS.fullmatch(word.value) for word in arguments)


def _pip(arguments: tuple[Word, ...]) -> bool:
    if any(word.may_be_option for word in arguments):
        return False
    values = [word.value for word in arguments]
    return values[:1] in (["list"], ["show"], ["freeze"]) and not any(value.startswith("-") for value in values)


def _npm(arguments: tuple[Word, ...]) -> bool:
    return [word.value for word in arguments] in (["ls"], ["list"], ["outdated"], ["run"])
