"""Where the value of a parameter ends, when values are code and code may contain these very tags.

The rules, in the order of what they trust:
- A whole call inside a value (its `<tool_call>` and `<function=NAME>` are seen to open) is text, up to its own end.
- `</parameter>` ends the value only before a tag that can follow it: a parameter not given yet, the end of the
  function and call, another call, or the end of the text.
- `</function>` ends it only before the end of the call, another call or the end of the text; in a call that began
  without `<tool_call>`, also alone on its line.
- A missing `</parameter>` is made up for by `<parameter=KEY>`, at the start of a line or right after a word, of a
  parameter that is declared (where a schema says so) and not given yet.
- A closing tag before a quote or backslash is part of a string in the code.

Limits: a value whose own lines hold closing tags of a whole call without the opening ones ends there; a call whose
closing tags are all missing swallows the calls after it. Both are reported as truncated or leave stray text.
"""

from collections.abc import Callable
from dataclasses import dataclass

from codemill.chat.tool_tags import Cursor, Header, LinePosition, Tag

QUOTES = "\"'`\\"


@dataclass(frozen=True)
class Decision:
    """Whether the tag ends the value, and the end of the tag (or of the character that turned out to be text)."""

    ends_value: bool
    end: int


class ValueBoundary:
    """Judges each `<` in one value. `seen` are the parameters given so far, this one included."""

    def __init__(self, cursor: Cursor, seen: frozenset[str], declared: frozenset[str] | None, wrapped: bool) -> None:
        self._cursor = cursor
        self._seen = seen
        self._declared = declared
        self._wrapped = wrapped
        self._inner_calls = 0
        self._inner_functions = 0
        self._rules: dict[Tag, Callable[[int, LinePosition], bool | None]] = {
            Tag.OPEN_CALL: self._open_call,
            Tag.CLOSE_CALL: self._close_call,
            Tag.OPEN_FUNCTION: self._open_function,
            Tag.CLOSE_FUNCTION: self._close_function,
            Tag.OPEN_PARAMETER: self._open_parameter,
            Tag.CLOSE_PARAMETER: self._close_parameter,
        }

    def judge(self, at: int, line: LinePosition) -> Decision | None:
        """Judge the `<` at `at`; None if that takes text that has not arrived."""
        tag = self._cursor.tag_at(at)
        if tag is Tag.MORE:
            return None
        if tag is Tag.TEXT:
            return Decision(False, at + 1)
        end = at + len(tag.value)
        ends = self._rules[tag](end, line)
        return None if ends is None else Decision(ends, end)

    @property
    def _inside_call(self) -> bool:
        return self._inner_calls > 0 or self._inner_functions > 0

    # Each rule is given the end of its tag and says whether the value ends there; None: more text is needed.

    def _open_call(self, end: int, _line: LinePosition) -> bool | None:
        following = self._cursor.peek(end)
        if following.kind is Tag.MORE:
            return None
        opens = following.kind is Tag.TEXT and self._cursor.text[following.start] == "{"
        if following.kind is Tag.OPEN_FUNCTION:
            header = self._cursor.header(following.end)
            if header is Tag.MORE:
                return None
            opens = isinstance(header, Header)
        self._inner_calls += opens
        return False

    def _open_function(self, end: int, _line: LinePosition) -> bool | None:
        header = self._cursor.header(end)
        if not isinstance(header, Header):
            return None if header is Tag.MORE else False
        following = self._cursor.peek(header.end).kind
        if following is Tag.MORE:
            return None
        self._inner_functions += following in (Tag.OPEN_PARAMETER, Tag.CLOSE_FUNCTION)
        return False

    def _close_call(self, end: int, line: LinePosition) -> bool | None:
        if self._inner_calls:
            self._inner_calls -= 1
            self._inner_functions = self._inner_functions if self._inner_calls else 0
            return False
        following = self._cursor.peek(end).kind
        if following is Tag.MORE:
            return None
        return line.is_blank and following in (Tag.END, Tag.OPEN_CALL)

    def _close_function(self, end: int, line: LinePosition) -> bool | None:
        if self._inside_call:
            self._inner_functions = max(0, self._inner_functions - 1)
            return False
        if self._cursor.peek(end).kind is Tag.TEXT and not line.is_blank:
            return False
        return self._can_end_function(end)

    def _open_parameter(self, end: int, line: LinePosition) -> bool | None:
        if self._inside_call or not (line.is_blank or line.previous.isalnum()):
            return False
        header = self._cursor.header(end)
        if not isinstance(header, Header):
            return None if header is Tag.MORE else False
        return header.name not in self._seen and (self._declared is None or header.name in self._declared)

    def _close_parameter(self, end: int, _line: LinePosition) -> bool | None:
        if self._inside_call:
            return self._only_closing_tags_follow(end)
        following = self._cursor.peek(end)
        if following.kind is Tag.MORE:
            return None
        if following.kind is Tag.OPEN_PARAMETER:
            header = self._cursor.header(following.end)
            if isinstance(header, Header):
                return header.name not in self._seen
            return None if header is Tag.MORE else header is Tag.END
        if following.kind is Tag.CLOSE_FUNCTION:
            return self._can_end_function(following.end)
        if following.kind is Tag.CLOSE_CALL:
            return self._is_unquoted(following.end)
        return following.kind in (Tag.END, Tag.OPEN_CALL, Tag.OPEN_FUNCTION)

    def _can_end_function(self, end: int) -> bool | None:
        """Whether what follows a `</function>` lets it be the call's own."""
        following = self._cursor.peek(end)
        if following.kind is Tag.MORE:
            return None
        if following.kind is Tag.CLOSE_CALL:
            return self._is_unquoted(following.end)
        if following.kind is Tag.TEXT:
            return not self._wrapped and self._cursor.text[following.start] not in QUOTES
        return following.kind in (Tag.END, Tag.OPEN_CALL, Tag.OPEN_FUNCTION)

    def _is_unquoted(self, end: int) -> bool | None:
        if end < len(self._cursor.text):
            return self._cursor.text[end] not in QUOTES
        return True if self._cursor.final else None

    def _only_closing_tags_follow(self, end: int) -> bool | None:
        """Whether the text ends after these tags: then they are the call's own, and the inner call never was one."""
        for closing in (Tag.CLOSE_FUNCTION, Tag.CLOSE_CALL):
            following = self._cursor.peek(end)
            end = following.end if following.kind is closing else end
        following = self._cursor.peek(end)
        return None if following.kind is Tag.MORE else following.kind is Tag.END
