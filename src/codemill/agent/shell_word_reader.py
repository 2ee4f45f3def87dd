"""Reads the words of a shell command: quotes, expansions, and the commands that stand in them.

The language is that of Bash's manual, "Quoting" and "Shell Expansions".
"""

import re
from abc import ABC, abstractmethod

from codemill.agent.shell_words import CommandPart, Unclear, Word

ENDS_WORD = " \t\n;&|()<>"
_DEEPEST = 30
_BLANKS = " \t"
_NUMERIC = re.compile(r"[\d\s+\-*/%()<>=!&|^~?:,]*")
# Others evaluate subscripts or prompts, in which commands may stand.
_PARAMETER = re.compile(
    r"#?(?:[A-Za-z_]\w*|\d+|[@*#?$!-])(?:\[(?:[@*]|\d+)\])?(?::?[-=+?]|##?|%%?|//?|\^\^?|,,?|$)|#?$"
)
_SLICE = re.compile(r"(?:[A-Za-z_]\w*|\d+|[@*]):\s*-?\d+(?::\s*-?\d+)?")
_BRACES = re.compile(r"\{[^\s;&|]*")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "v": "\v"}


class WordReader(ABC):
    """Goes once through a text. parts: the commands that were found in its words."""

    def __init__(self, text: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise Unclear("it is nested too deeply")
        self.text, self.at, self.depth = text, 0, depth
        self.parts: list[CommandPart] = []
        self._here: list[tuple[str, bool, bool]] = []  # delimiter, tabs stripped, quoted
        self._pipeline: tuple[str, ...] = ()

    def _next(self, size: int = 1) -> str:
        return self.text[self.at : self.at + size]

    @abstractmethod
    def read_commands(self, closer: str) -> str:
        """Up to `closer` at the place of a command -> what was found. closer: ")", or ";;" for a branch of `case`,
        which "esac" closes too."""

    @abstractmethod
    def parse(self, text: str) -> list[CommandPart]:
        """Read another text, which stands in this one."""

    @abstractmethod
    def _newline(self) -> None:
        """The end of a line, and the here-documents after it."""

    # Blanks

    def _skip_blanks(self) -> None:
        while True:
            if self._next() and self._next() in _BLANKS:
                self.at += 1
            elif self._next(2) == "\\\n":
                self.at += 2
            elif self._next() == "#":  # at a word's start
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                return

    def _skip_space(self) -> None:
        """Blanks, comments and line ends."""
        self._skip_blanks()
        while self._next() == "\n":
            self._newline()
            self._skip_blanks()

    # Words

    def _word(self) -> Word:
        start, value = self.at, ""
        computed = may_be_option = False
        while (here := self._next()) and (here not in ENDS_WORD or self._next(2) in ("<(", ">(")):
            first = self.at == start
            if here == "\\":
                value += self._next(2)[1:].replace("\n", "")
                self.at += 2
            elif here == "'":
                value += self._single_quotes()
            elif here == '"' or self._next(2) == '$"':
                self.at += here == "$"
                text, expanded = self._double_quotes()
                value += text
                computed |= expanded
                may_be_option |= expanded and ((first and text[:1] in "$`") or "$@" in text or "[@]" in text)
            elif self._next(2) == "$'":
                value += self._ansi_quotes()
            elif here in "$`<>":
                value += self._expansion(here)
                computed = may_be_option = True
            else:
                if here in "*?[" or (here == "{" and self._is_expansion()):
                    computed, may_be_option = True, may_be_option or first
                value += here
                self.at += 1
                if self._next() == "(" and here in "?*+@!":
                    raise Unclear("an extended pattern")
        raw = self.text[start : self.at]
        if not raw:
            raise Unclear(f"{self._next()!r} where a word belongs" if self._next() else "a word is missing")
        if raw in ("[", "{", "[["):
            computed = may_be_option = False
        return Word(value, raw, computed, computed and (may_be_option or value.startswith("-")))

    def _expansion(self, here: str) -> str:
        start = self.at
        if here == "$":
            self._dollar(quoted=False)
        elif here == "`":
            self._backquotes()
        else:
            self.at += 2
            self._substitution()
        return self.text[start : self.at]

    def _is_expansion(self) -> bool:
        """Whether braces give several words; found in one go, since there may be many."""
        found = _BRACES.match(self.text, self.at)
        body = found[0].rpartition("}")[0] if found else ""
        return "," in body or ".." in body

    def _single_quotes(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise Unclear("a quote is not closed")
        text, self.at = self.text[self.at + 1 : end], end + 1
        return text

    def _ansi_quotes(self) -> str:
        found = re.compile(r"\$'((?:[^'\\]|\\.)*)'", re.DOTALL).match(self.text, self.at)
        if not found:
            raise Unclear("a quote is not closed")
        if re.search(r"\\[^abeEfnrtv\\'\"?]", found[1]):
            raise Unclear("characters given by number")
        self.at = found.end()
        return re.sub(r"\\(.)", lambda each: _ESCAPES.get(each[1], each[1]), found[1])

    def _double_quotes(self) -> tuple[str, bool]:
        self.at += 1
        value, expanded = "", False
        while (here := self._next()) != '"':
            if not here:
                raise Unclear("a quote is not closed")
            if here == "\\":
                pair = self._next(2)
                value += {"\\\n": ""}.get(pair, pair[1:] if pair[1:] in '$`"\\' else pair)
                self.at += 2
            elif here in "$`":
                start = self.at
                if here == "$":
                    self._dollar(quoted=True)
                else:
                    self._backquotes()
                    if '\\"' in self.text[start : self.at]:
                        raise Unclear("quotes in backquotes in quotes")
                value += self.text[start : self.at]
                expanded |= self.at > start + 1
            else:
                value += here
                self.at += 1
        self.at += 1
        return value, expanded

    def _dollar(self, quoted: bool) -> None:
        """From a dollar sign to the end of what it begins."""
        if self._next(3) == "$((" or self._next(2) == "$[":
            self._arithmetic()
        elif self._next(2) == "$(":
            self.at += 2
            self._substitution()
        elif self._next(2) == "${":
            self._parameter()
        else:
            found = re.compile(r"\$(?:[A-Za-z_]\w*|[0-9@*#?$!-])?").match(self.text, self.at)
            assert found is not None
            self.at = found.end()

    def _substitution(self) -> None:
        """Commands up to the closing parenthesis, with a pipeline and here-documents of their own."""
        outer, pipeline, start = self._here, self._pipeline, self.at
        self._here, self._pipeline = [], ()
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Unclear("it is nested too deeply")
        self.read_commands(closer=")")
        self.depth -= 1
        if self._here or (outer and "\n" in self.text[start : self.at]):
            raise Unclear("a here-document that goes beyond a substitution")
        self._here, self._pipeline = outer, pipeline

    def _arithmetic(self) -> None:
        opening, closing = ("$((", "))") if self._next(3) == "$((" else ("$[", "]")
        end = self.text.find(closing, self.at)
        content = self.text[self.at + len(opening) : end]
        if end < 0 or not _NUMERIC.fullmatch(content):
            raise Unclear("arithmetic with names, in whose values commands may stand")
        self.at = end + len(closing)

    def _parameter(self) -> None:
        self.at += 2
        found = _PARAMETER.match(self.text[self.at :].partition("}")[0])
        slice_found = _SLICE.match(self.text[self.at :].partition("}")[0])
        if not found and not (slice_found and slice_found.end() == len(self.text[self.at :].partition("}")[0])):
            raise Unclear("an expansion that may evaluate more than a name")
        self.at += (found or slice_found).end()  # type: ignore[union-attr]
        while (here := self._next()) != "}":
            if not here:
                raise Unclear("'}' is missing")
            if here == "\\":
                self.at += 2
            elif here == "'":
                raise Unclear("quotes in an expansion")
            elif here == '"':
                self._double_quotes()
            elif here == "$":
                self._dollar(quoted=True)
            elif here == "`":
                self._backquotes()
            elif self._next(2) in ("@P", "@E", "@A"):
                raise Unclear("an expansion that evaluates its value")
            else:
                self.at += 1
        self.at += 1

    def _backquotes(self) -> None:
        found = re.compile(r"`((?:[^`\\]|\\.)*)`", re.DOTALL).match(self.text, self.at)
        if not found:
            raise Unclear("a backquote is not closed")
        if self._here and "\n" in found[1]:
            raise Unclear("a here-document that goes beyond a substitution")
        self.at = found.end()
        self.parts += self.parse(re.sub(r"\\([`\\$])", r"\1", found[1]))
