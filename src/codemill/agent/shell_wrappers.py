"""Programs that run another command: the command within is what rules judge."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from codemill.agent.shell_words import CommandPart, Unclear, Word

Parse = Callable[[str], list[CommandPart]]
# What these do not have, or read in another way than Bash.
_POSIX_SHELLS = ("sh", "dash", "ash")
_NOT_POSIX = re.compile(r"\$['\"\[]|\[\[|&>|<<<|\|&|[<>]\(|\bfunction\b|\bselect\b|\bcoproc\b")
SHELLS = ("sh", "bash", "dash", "zsh", "ksh", "ash", "fish")


@dataclass(frozen=True)
class _Wrapper:
    """flags: options without a value, short ones as letters. valued: options with a value. operands: words between the
    options and the command. kept: whether the wrapper itself matters besides what it runs."""

    flags: str = ""
    valued: str = ""
    long_flags: tuple[str, ...] = ()
    long_valued: tuple[str, ...] = ()
    operands: int = 0
    kept: bool = False


_WRAPPERS: Mapping[str, _Wrapper] = {
    "env": _Wrapper("i0v", "uC", ("--ignore-environment", "--null", "--debug"), ("--unset", "--chdir")),
    "nohup": _Wrapper(),
    "time": _Wrapper("pv", "", ("--portability", "--verbose")),
    "timeout": _Wrapper(
        "fpv", "ks", ("--foreground", "--preserve-status", "--verbose"), ("--kill-after", "--signal"), operands=1
    ),
    "nice": _Wrapper("", "n", (), ("--adjustment",)),
    "ionice": _Wrapper("t", "cn", ("--ignore",), ("--class", "--classdata")),
    "stdbuf": _Wrapper("", "ioe", (), ("--input", "--output", "--error")),
    "setsid": _Wrapper("cfw", "", ("--ctty", "--fork", "--wait")),
    "command": _Wrapper("p"),
    "builtin": _Wrapper(),
    "exec": _Wrapper("cl", "a"),
    "sudo": _Wrapper(
        "AbEHnPSkK", "ugpCDhRTrt", ("--preserve-env", "--non-interactive"), ("--user", "--group"), kept=True
    ),
    "doas": _Wrapper("nL", "uC", kept=True),
    "xargs": _Wrapper(
        "0rtxop",
        "IiLlnPsEaed",
        ("--null", "--no-run-if-empty", "--verbose", "--exit", "--interactive"),
        ("--replace", "--max-lines", "--max-args", "--max-procs", "--max-chars", "--delimiter", "--arg-file", "--eof"),
    ),
    "chronic": _Wrapper(),
    "unbuffer": _Wrapper(),
}
_FIND_RUNS = ("-exec", "-execdir", "-ok", "-okdir")
_INPUT_WORD = Word("{}", "{}", is_computed=True, may_be_option=True)


def unwrap(part: CommandPart, parse: Parse) -> list[CommandPart]:
    """The parts that a command really runs, itself among them if it matters. parse: reads a text as commands."""
    try:
        return _unwrap(part, parse)
    except Unclear as error:
        return [replace(part, kind="unclear", problem=str(error))]


def _unwrap(part: CommandPart, parse: Parse) -> list[CommandPart]:
    first = part.words[0]
    if first.is_computed:
        raise Unclear("which program runs is computed")
    name, arguments = part.name, part.words[1:]
    if name in SHELLS:
        return _shell(part, arguments, parse)
    if name == "eval":
        return _text(arguments, parse)
    if name == "trap" and arguments and not arguments[0].value.startswith("-"):
        return _text(arguments[:1], parse)
    if name == "find":
        return [part, *_find(part, arguments, parse)]
    if name == "command" and arguments and arguments[0].value in ("-v", "-V"):
        return [part]
    if name in _WRAPPERS:
        return _wrapped(part, _WRAPPERS[name], arguments, parse)
    return [part]


def _wrapped(part: CommandPart, wrapper: _Wrapper, arguments: Sequence[Word], parse: Parse) -> list[CommandPart]:
    rest = list(_after_options(part.name, wrapper, arguments))[wrapper.operands :]
    assigned = list(part.assigned)
    while part.name in ("env", "sudo", "doas") and rest and "=" in rest[0].value and not rest[0].value.startswith("="):
        assigned.append(rest.pop(0).value.partition("=")[0])
    if not rest:
        return [part]
    if part.name == "xargs":
        options = arguments[: len(arguments) - len(rest)]
        rest = [_filled_in(word, _placeholders(options), may_be_option=True) for word in rest]
        rest.append(_INPUT_WORD)
    inner = replace(part, words=tuple(rest), assigned=tuple(assigned))
    return [*([part] if wrapper.kept else []), *unwrap(inner, parse)]


def _filled_in(word: Word, placeholders: Sequence[str], may_be_option: bool = False) -> Word:
    """A word that is not what it looks like, if it has a placeholder in it."""
    if not any(each in word.value for each in placeholders):
        return word
    return replace(word, is_computed=True, may_be_option=word.may_be_option or may_be_option)


def _placeholders(options: Sequence[Word]) -> list[str]:
    """What xargs may replace by its input, as -I, -i and --replace say."""
    found = ["{}"]
    values = [word.value for word in options]
    for number, value in enumerate(values):
        if value.startswith("--replace="):
            found.append(value.partition("=")[2])
        elif match := re.fullmatch(r"-[0rtxop]*([Ii])(.*)", value, re.DOTALL):
            found += [match[2]] if match[2] else values[number + 1 : number + 2]
    return [each for each in found if each]


def _after_options(name: str, wrapper: _Wrapper, arguments: Sequence[Word]) -> Sequence[Word]:
    at = 0
    while at < len(arguments):
        word = arguments[at]
        if word.may_be_option:
            raise Unclear(f"the options of {name} are computed")
        if not word.value.startswith("-") or word.value == "-":
            break
        if word.value == "--":
            return arguments[at + 1 :]
        at += _option_words(name, wrapper, word.value)
    return arguments[at:]


def _option_words(name: str, wrapper: _Wrapper, option: str) -> int:
    """How many words an option takes, with its value."""
    if option.startswith("--"):
        if option in wrapper.long_flags or (option.partition("=")[0] in wrapper.long_valued and "=" in option):
            return 1
        if option in wrapper.long_valued:
            return 2
    elif name == "nice" and option[1:].isdigit():
        return 1
    else:
        for place, letter in enumerate(option[1:], start=1):
            if letter in wrapper.valued:
                return 1 if option[place + 1 :] or (letter in "iel" and name == "xargs") else 2
            if letter not in wrapper.flags:
                break
        else:
            return 1
    raise Unclear(f"option {option} of {name} is not known here")


def _shell(part: CommandPart, arguments: Sequence[Word], parse: Parse) -> list[CommandPart]:
    at = 0
    while at < len(arguments) and arguments[at].value.startswith(("-", "+")):
        option = arguments[at].value
        if arguments[at].is_computed:
            raise Unclear("the options of the shell are computed")
        if option.startswith("--") and option not in ("--norc", "--noprofile", "--login", "--posix"):
            raise Unclear(f"option {option} of the shell")
        if not option.startswith("--") and "c" in option:
            script = [word for word in arguments[at + 1 :] if not word.value.startswith("-")][:1]
            if part.name != "bash" and (part.name not in _POSIX_SHELLS or _NOT_POSIX.search(_joined(script))):
                raise Unclear(f"{part.name} may read this in another way than Bash")
            return _text(script, parse)
        at += 2 if option in ("-o", "+o", "-O", "+O") else 1
    if at >= len(arguments) or "s" in "".join(word.value for word in arguments[:at]):
        raise Unclear("a shell that reads its commands from its input")
    return [part]


def _joined(words: Sequence[Word]) -> str:
    return " ".join(word.value for word in words)


def _text(words: Sequence[Word], parse: Parse) -> list[CommandPart]:
    """Words that are a command as a text."""
    if not words:
        raise Unclear("the command is missing")
    if any(word.is_computed for word in words):
        raise Unclear("the text of the command is computed")
    return parse(_joined(words))


def _find(part: CommandPart, arguments: Sequence[Word], parse: Parse) -> list[CommandPart]:
    """The commands of -exec and its kin."""
    found: list[CommandPart] = []
    at = 0
    while at < len(arguments):
        if arguments[at].value in _FIND_RUNS:
            end = next((i for i in range(at, len(arguments)) if arguments[i].value in (";", "+")), len(arguments))
            words = tuple(_filled_in(word, ["{}"]) for word in arguments[at + 1 : end])
            if not words:
                raise Unclear("find runs nothing")
            found += unwrap(replace(part, words=words), parse)
            at = end
        at += 1
    return found
