"""Reads a shell command for everything that it may run, for rules to judge part by part.

What counts is that nothing is missed: a command in a branch that is never taken is reported as well, and a text that is
no valid shell may give more parts than a shell would run. What is not understood, or is computed when the command runs,
is reported as unclear. The language is that of Bash's manual, "Shell Grammar" and "Expansions".
"""

import re

from codemill.agent.shell_word_reader import ENDS_WORD, WordReader
from codemill.agent.shell_words import CommandPart, Unclear, Word
from codemill.agent.shell_wrappers import unwrap

_LONGEST = 50_000  # characters; nobody could check what is longer either
_MOST = 1000  # commands in one text
_SKIPPED = {"if", "then", "elif", "else", "fi", "while", "until", "do", "done", "!", "{", "}", "time"}
_REDIRECTION = re.compile(r"(?:\d+|\{[A-Za-z_]\w*\})?(<<<|<<-|<<|<>|<&|>>|>\||>&|&>>|&>|<|>)")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\[[^\]]*\])?\+?=")
_NOT_A_FILE = re.compile(r"/dev/(?:null|stdout|stderr|tty|fd/\d+)")
_DESCRIPTOR = re.compile(r"-|\d+-?")
_ARITHMETIC_TESTS = {"-eq", "-ne", "-lt", "-le", "-gt", "-ge", "-v", "-R"}


def parse_command(text: str) -> list[CommandPart]:
    """Every part that may run, in the order in which they are written; at least one."""
    if len(text) > _LONGEST:
        return [CommandPart("unclear", text[:200], problem=f"it has more than {_LONGEST} characters")]
    parts = _parse(text, 0)
    return parts or [CommandPart("unclear", text, problem="there is no command")]


def _parse(text: str, depth: int) -> list[CommandPart]:
    reader = _Reader(text, depth)
    try:
        reader.read_commands(closer="")
    except (Unclear, RecursionError) as error:
        reader.parts.append(CommandPart("unclear", text, problem=str(error) or "it is nested too deeply"))
    return reader.parts


class _Reader(WordReader):
    """Goes once through a text."""

    def parse(self, text: str) -> list[CommandPart]:
        return _parse(text, self.depth + 1)

    # Commands

    def read_commands(self, closer: str) -> str:
        """Up to `closer` at the place of a command -> what was found. closer: ")", or ";;" for a branch of `case`,
        which "esac" closes too."""
        while True:
            self._skip_blanks()
            here = self._next()
            if not here:
                if closer:
                    raise Unclear(f"{closer!r} is missing")
                return ""
            if here == ")" or self._next(2) in (";;", ";&"):
                return self._close(closer, here)
            if here in "\n;&|" and self._next(2) not in ("&>",):
                self._separator()
            elif here == "(":
                self._subshell()
            elif self._command() == "esac":
                if closer != ";;":
                    raise Unclear("esac without case")
                return "esac"

    def _close(self, closer: str, here: str) -> str:
        found = ")" if here == ")" else ";;"
        if found != closer:
            raise Unclear(f"{found!r} where none belongs")
        self.at += 1 if here == ")" else 3 if self._next(3) == ";;&" else 2
        return found

    def _separator(self) -> None:
        if self._next() == "\n":
            self._newline()
            self._pipeline = ()
            return
        is_pipe = self._next() == "|" and self._next(2) != "||"
        self.at += 2 if self._next(2) in ("&&", "||", "|&") else 1
        if is_pipe:
            self._pipeline += tuple(part.name for part in self.parts[-1:] if part.kind == "command")
        else:
            self._pipeline = ()

    def _subshell(self) -> None:
        if self._next(2) == "((":
            raise Unclear("arithmetic, or nested subshells without a blank between")
        self.at += 1
        self.read_commands(closer=")")

    def _command(self) -> str:
        """A simple command, or a word of the grammar -> "esac" if it is that."""
        start = self.at
        words: list[Word] = []
        assigned: list[str] = []
        is_first = True  # after a redirection no word is one of the grammar
        while self._more_words():
            if self._redirection():
                is_first = False
                continue
            if self._next() == "(":
                self._function(words)
                return ""
            word = self._word()
            found = None if words else _ASSIGNMENT.match(word.raw)
            if found:
                assigned.append(self._assignment(found, word))
            elif is_first and not words and not assigned and (done := self._grammar(word)) is not None:
                return done
            else:
                words.append(word)
        self._add(self.text[start : self.at].strip(), tuple(words), tuple(assigned))
        return ""

    def _more_words(self) -> bool:
        self._skip_blanks()
        here = self._next()
        return bool(here) and (self._next(2) == "&>" or here not in "\n;&|)")

    def _add(self, text: str, words: tuple[Word, ...], assigned: tuple[str, ...]) -> None:
        if not words:
            if assigned:
                self.parts.append(CommandPart("assign", text, assigned=assigned))
            return
        if len(self.parts) >= _MOST:
            raise Unclear(f"it has more than {_MOST} commands")
        part = CommandPart("command", text, words, assigned, self._pipeline)
        self.parts += unwrap(part, lambda inner: _parse(inner, self.depth + 1))

    def _grammar(self, word: Word) -> str | None:
        """Handle a word that only means something at the place of a command; None if it is no such word."""
        raw = word.raw
        if raw in _SKIPPED:
            if raw == "time" and self._peek_option("-p"):
                self.at += 2
            return ""
        if raw == "esac":
            return "esac"
        if raw in ("for", "select"):
            return self._for()
        if raw == "case":
            return self._case()
        if raw == "function":
            self._skip_blanks()
            self._word()
            self._skip_blanks()
            if re.compile(r"\(\s*\)").match(self.text, self.at):
                self.at = self.text.index(")", self.at) + 1
            return ""
        if raw == "[[":
            return self._test()
        if raw == "coproc":
            raise Unclear("a coprocess")
        return None

    def _peek_option(self, option: str) -> bool:
        self._skip_blanks()
        return self._next(len(option)) == option

    def _function(self, words: list[Word]) -> None:
        """The () after a function's name; its body follows at the place of a command."""
        found = re.compile(r"\([ \t]*\)").match(self.text, self.at)
        if not found or len(words) != 1 or words[0].is_computed:
            raise Unclear("a parenthesis in the middle of a command")
        self.at = found.end()

    def _for(self) -> str:
        self._skip_blanks()
        if self._next(2) == "((":
            raise Unclear("arithmetic")
        name = self._word().value
        self.parts.append(CommandPart("assign", name, assigned=(name,)))
        self._skip_space()
        if re.compile(r"in(?=[\s;])").match(self.text, self.at):
            self.at += 2
            while self._more_words():
                self._word()
        return ""

    def _case(self) -> str:
        self._skip_blanks()
        self._word()
        self._skip_space()
        if self._next(2) != "in":
            raise Unclear("case without in")
        self.at += 2
        while True:
            self._skip_space()
            if re.compile(r"esac(?![\w-])").match(self.text, self.at):
                self.at += 4
                return ""
            self._patterns()
            if self.read_commands(closer=";;") == "esac":
                return ""

    def _patterns(self) -> None:
        if self._next() == "(":
            self.at += 1
        while True:
            self._skip_blanks()
            if self._next() == ")":
                self.at += 1
                return
            if self._next() == "|":
                self.at += 1
            elif not self._next() or self._next() in ENDS_WORD:
                raise Unclear("a pattern of case")
            else:
                self._word()

    def _test(self) -> str:
        while True:
            self._skip_space()
            here = self._next()
            if not here:
                raise Unclear("']]' is missing")
            if here in "()|&;" or (here in "<>" and self._next(2)[1:] != "("):
                self.at += 1
                continue
            word = self._word()
            if word.raw == "]]":
                return ""
            if word.raw in _ARITHMETIC_TESTS:
                raise Unclear(f"[[ {word.raw} ]] evaluates arithmetic, in which commands may stand")

    def _assignment(self, found: re.Match[str], word: Word) -> str:
        if found[2] and not found[2][1:-1].isdigit():
            raise Unclear("a computed subscript")
        if word.raw == found[0] and self._next() == "(":
            self.at += 1
            while True:
                self._skip_space()
                if self._next() == ")":
                    self.at += 1
                    break
                if not self._next() or (self._next() in ";&|<>(" and self._next(2)[1:] != "("):
                    raise Unclear("an array")
                if self._word().raw.startswith("["):
                    raise Unclear("a computed subscript")
        return found[1]

    # Redirections

    def _redirection(self) -> bool:
        found = _REDIRECTION.match(self.text, self.at)
        if not found or (found[1] in "<>" and self.text[found.end() : found.end() + 1] == "("):
            return False
        operator, self.at = found[1], found.end()
        if found[0].startswith("{"):
            name = found[0][1:].partition("}")[0]
            self.parts.append(CommandPart("assign", found[0], assigned=(name,)))
        self._skip_blanks()
        word = self._word()
        if operator in ("<<", "<<-"):
            quoted = word.raw != word.value or any(mark in word.raw for mark in "'\"\\")
            if word.is_computed:
                raise Unclear("a computed end of a here-document")
            self._here.append((word.value, operator == "<<-", quoted))
        elif operator not in ("<", "<<<", "<&") and not self._is_no_file(operator, word):
            self.parts.append(CommandPart("write", f"{operator} {word.raw}", (Word(">", ">"), word)))
        elif word.value.startswith(("/dev/tcp/", "/dev/udp/")):
            self.parts.append(CommandPart("unclear", f"{operator} {word.raw}", problem="a connection to the network"))
        return True

    @staticmethod
    def _is_no_file(operator: str, word: Word) -> bool:
        if word.is_computed:
            return False
        return bool(_NOT_A_FILE.fullmatch(word.value) or (operator == ">&" and _DESCRIPTOR.fullmatch(word.value)))

    def _newline(self) -> None:
        self.at += 1
        for delimiter, tabs, quoted in self._here:
            body = []
            while self.at < len(self.text):
                end = self.text.find("\n", self.at)
                end = len(self.text) if end < 0 else end
                line = self.text[self.at : end]
                self.at = min(end + 1, len(self.text))
                if (line.lstrip("\t") if tabs else line) == delimiter:
                    break
                if not quoted and (len(line) - len(line.rstrip("\\"))) % 2:
                    raise Unclear("a line of a here-document that goes on in the next")
                body.append(line)
            if not quoted:
                self._expansions("\n".join(body))
        self._here = []

    def _expansions(self, text: str) -> None:
        """What a text runs in which only expansions count."""
        reader = _Reader(text, self.depth + 1)
        while reader.at < len(text):
            if text[reader.at] == "\\":
                reader.at += 2
            elif text[reader.at] == "$":
                reader._dollar(quoted=True)
            elif text[reader.at] == "`":
                reader._backquotes()
            else:
                reader.at += 1
        self.parts += reader.parts
