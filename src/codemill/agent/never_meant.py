"""Commands that nobody means to run: they destroy the machine or the user's files, or run what a stranger sends."""

import re
from functools import lru_cache

from codemill.agent.shell_words import CommandPart, Word
from codemill.agent.shell_wrappers import SHELLS

_TOP = re.compile(
    r"/+\*?|/+\.|~/?\*?|\"?\$\{?HOME\}?\"?/?\*?|~\w+/?"
    r"|/(?:bin|boot|dev|etc|home|lib\w*|opt|proc|root|run|sbin|srv|sys|usr|var|Users|System|Library)(?:/\*?)?"
    r"|/(?:home|Users)/[^/]+/?\*?"
)
_DISK = re.compile(r"/dev/(?:sd|hd|vd|xvd|nvme|mmcblk|disk|dm-|md|loop|mapper/|mem|kmem|port)")
_FORK_BOMB = re.compile(r"(?<![\w:.-])([\w:.-]+)\s*\(\)\s*\{[^}]*\1\s*\|\s*\1\s*&")
_FETCH = ("curl", "wget", "fetch", "http", "https", "lynx", "nc", "ncat")
_INTERPRETERS = (*SHELLS, "python", "python3", "perl", "ruby", "node", "php")
_FETCHED_TEXT = re.compile(rf"(?:[$<]\(|`)\s*(?:{'|'.join(_FETCH)})\b")
_POWER = ("shutdown", "reboot", "halt", "poweroff", "telinit")
_FORMATS = ("wipefs", "fdisk", "sfdisk", "cfdisk", "parted", "mkswap", "blkdiscard", "hdparm", "cryptsetup")


def why_never(part: CommandPart, whole: str) -> str:
    """The reason why a part of the command `whole` is refused; empty if it is not."""
    if _is_fork_bomb(whole):
        return "a fork bomb"
    if part.kind == "write":
        return "overwrites a disk" if _DISK.match(part.words[1].value) else ""
    if not part.words:
        return ""
    return _of_files(part) or _of_machine(part) or _of_strangers(part)


@lru_cache(maxsize=1)
def _is_fork_bomb(whole: str) -> bool:
    """It is asked for each part of the same command."""
    return _FORK_BOMB.search(whole) is not None


def _of_files(part: CommandPart) -> str:
    name, arguments = part.name, part.words[1:]
    targets = [word.raw for word in arguments if not word.value.startswith("-") and _is_top(word)]
    if name == "rm" and any(word.value == "--no-preserve-root" for word in arguments):
        return "deletes everything"
    if name == "rm" and targets and _is_recursive(arguments):
        return f"deletes {targets[0]}"
    if name in ("chmod", "chown", "chgrp") and targets and _is_recursive(arguments):
        return f"changes who may use all of {targets[0]}"
    if name == "find" and any(word.value == "-delete" for word in arguments) and targets:
        return f"deletes what is in {targets[0]}"
    if name in ("mv", "shred") and targets[:1] and arguments and any(_is_top(word) for word in arguments[:-1]):
        return f"moves {targets[0]} away"
    return ""


def _is_recursive(arguments: tuple[Word, ...]) -> bool:
    return any(
        ("--recursive".startswith(word.value) and len(word.value) > 2)
        or re.fullmatch(r"-[A-Za-z]*[rR][A-Za-z]*", word.value) is not None
        for word in arguments
    )


def _is_top(word: Word) -> bool:
    return any(_TOP.fullmatch(text) for text in (word.value, word.raw))


def _of_machine(part: CommandPart) -> str:
    name, values = part.name, part.values[1:]
    if name in _POWER or (name in ("systemctl", "loginctl") and set(values) & {"poweroff", "reboot", "halt", "kexec"}):
        return "turns the machine off"
    if name == "init" and values[:1] in (("0",), ("6",)):
        return "turns the machine off"
    if name.startswith("mkfs") or name in _FORMATS:
        return "formats a disk"
    if name == "dd" and any(value.startswith("of=") and _DISK.match(value[3:]) for value in values):
        return "overwrites a disk"
    if name in ("cp", "tee", "shred", "cat", "truncate") and any(_DISK.match(value) for value in values):
        return "overwrites a disk" if name != "cat" else ""
    return "ends every process" if name == "kill" and "-1" in values[1:] else ""


def _of_strangers(part: CommandPart) -> str:
    if part.name not in (*_INTERPRETERS, "eval", "source", "."):
        return ""
    reads_input = part.kind == "unclear" or all(word.value.startswith("-") for word in part.words[1:])
    if reads_input and set(part.fed_by) & set(_FETCH):
        return "runs what it fetches from the network"
    return "runs what it fetches from the network" if _FETCHED_TEXT.search(part.text) else ""
