"""Where the value of a parameter ends, when values are code and code may contain these very tags.

What ends a value for certain:
- `</parameter>` before a parameter not given yet, before another call, or before the end of the text.
- `</parameter>` and `</function>`, or `</function>` or `</tool_call>` without the tags before them, if after all the
  closing tags comes another call or the end of the text.
- `<parameter=KEY>`, at the start of a line or right after a word, of a parameter that is declared (where a schema says
  so) and not given yet: `</parameter>` is missing.

What is doubtful, and ends the value only if nothing later ends it for certain:
- Closing tags before other text: all of them, or some of them at the start of a line. The most of them count, of
  equally many the last.
- A call of a known function at the start of a line, if nothing required is missing and the text ends with that call's
  closing tags: this one's are missing. The first such call counts. Any call makes closing tags before it certain.

Never an end: the tags of a whole call inside the value, and closing tags before a quote or backslash, which are part of
a string in the code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum

from codemill.chat.tool_schema import ToolSchemas
from codemill.chat.tool_tags import Cursor, Header, LinePosition, Tag

QUOTES = "\"'`\\"
MAX_OPEN_CALLS = 8  # calls without closing tags in one message; more are text, since each is read twice


class Ending(IntEnum):
    """How sure it is that a tag ends the value."""

    NONE = 0
    NEXT_CALL = 1
    ONE_CLOSED = 2
    TWO_CLOSED = 3
    ALL_CLOSED = 4
    CERTAIN = 5


class Verdict(Enum):
    """What to do with a tag: keep it in the value, or end the value here, perhaps here, or at the last `perhaps`."""

    TEXT = "text"
    END = "end"
    PERHAPS = "perhaps"
    END_BEFORE = "end before"


@dataclass(frozen=True)
class Decision:
    """The verdict on a tag, and the end of the tag (or of the character that turned out to be text)."""

    verdict: Verdict
    end: int


class ValueBoundary:
    """Judges each `<` in one value of a call of `name`. `seen` are the parameters given so far, this one included;
    `wrapped`: the call began with `<tool_call>`."""

    def __init__(self, cursor: Cursor, schemas: ToolSchemas, name: str, seen: frozenset[str], wrapped: bool) -> None:
        self._cursor = cursor
        self._schemas = schemas
        self._seen = seen
        self._declared = schemas.declared(name)
        self._may_be_last = schemas.required(name) <= seen
        self._wrapped = wrapped
        self._doubt = Ending.NONE
        self._inner_calls = 0
        self._inner_functions = 0
        self._rules: dict[Tag, Callable[[int, LinePosition], Ending | None]] = {
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
            return Decision(Verdict.TEXT, at + 1)
        end = at + len(tag.value)
        ending = self._rules[tag](end, line)
        return None if ending is None else Decision(self._weigh(ending), end)

    @property
    def is_closed(self) -> bool:
        """Whether all the call's closing tags stand at the doubtful place."""
        return self._doubt >= (Ending.ALL_CLOSED if self._wrapped else Ending.TWO_CLOSED)

    def ended_before(self, rest: str) -> bool:
        """Whether a value that the end of the text cuts off ended at the doubtful place; `rest` is the text from it."""
        if self._doubt is not Ending.NEXT_CALL:
            return self._doubt is not Ending.NONE
        last = Tag.CLOSE_CALL if rest.startswith(Tag.OPEN_CALL.value) else Tag.CLOSE_FUNCTION
        return rest.rstrip().endswith(last.value) and max(self._inner_calls, self._inner_functions) <= MAX_OPEN_CALLS

    def _weigh(self, ending: Ending) -> Verdict:
        if ending is Ending.CERTAIN:
            return Verdict.END
        if ending is Ending.NEXT_CALL and self._doubt > Ending.NEXT_CALL:
            return Verdict.END_BEFORE
        if ending is Ending.NEXT_CALL and (self._doubt or not self._may_be_last):
            return Verdict.TEXT
        if ending is Ending.NONE or ending < self._doubt:
            return Verdict.TEXT
        self._doubt = ending
        return Verdict.PERHAPS

    @property
    def _inside_call(self) -> bool:
        return self._inner_calls > 0 or self._inner_functions > 0

    # Each rule is given the end of its tag and says how surely the value ends there; None: more text is needed.

    def _open_call(self, end: int, line: LinePosition) -> Ending | None:
        following = self._cursor.peek(end)
        if following.kind is Tag.MORE:
            return None
        if following.kind is Tag.TEXT:
            self._inner_calls += self._cursor.text[following.start] == "{"
        if following.kind is not Tag.OPEN_FUNCTION:
            return Ending.NONE
        header = self._cursor.header(following.end)
        if not isinstance(header, Header):
            return None if header is Tag.MORE else Ending.NONE
        ending = self._next_call(header, line)
        self._inner_calls += 1
        return ending

    def _open_function(self, end: int, line: LinePosition) -> Ending | None:
        header = self._cursor.header(end)
        if not isinstance(header, Header):
            return None if header is Tag.MORE else Ending.NONE
        following = self._cursor.peek(header.end).kind
        if following is Tag.MORE:
            return None
        if following not in (Tag.OPEN_PARAMETER, Tag.CLOSE_FUNCTION):
            return Ending.NONE
        ending = self._next_call(header, line)
        self._inner_functions += 1
        return ending

    def _next_call(self, header: Header, line: LinePosition) -> Ending:
        is_known = self._schemas.knows(header.name) or not self._schemas.names
        is_next = self._doubt > Ending.NEXT_CALL or (is_known and line.is_blank)
        return Ending.NEXT_CALL if is_next and not self._inside_call else Ending.NONE

    def _close_call(self, end: int, line: LinePosition) -> Ending | None:
        if self._inner_calls:
            self._inner_calls -= 1
            self._inner_functions = self._inner_functions if self._inner_calls else 0
            return Ending.NONE
        return self._after_closing_tags(end, Ending.ONE_CLOSED) if line.is_blank else Ending.NONE

    def _close_function(self, end: int, line: LinePosition) -> Ending | None:
        if self._inside_call:
            self._inner_functions = max(0, self._inner_functions - 1)
            return Ending.NONE
        return self._end_of_function(end, Ending.ONE_CLOSED, line.is_blank)

    def _open_parameter(self, end: int, line: LinePosition) -> Ending | None:
        if self._inside_call or not (line.is_blank or line.is_after_word):
            return Ending.NONE
        header = self._cursor.header(end)
        if not isinstance(header, Header):
            return None if header is Tag.MORE else Ending.NONE
        is_next = header.name not in self._seen and (self._declared is None or header.name in self._declared)
        return Ending.CERTAIN if is_next else Ending.NONE

    def _close_parameter(self, end: int, line: LinePosition) -> Ending | None:
        if self._inside_call:
            return self._only_closing_tags_follow(end)
        following = self._cursor.peek(end)
        if following.kind is Tag.OPEN_PARAMETER:
            header = self._cursor.header(following.end)
            if header is Tag.MORE:
                return None
            is_next = header.name not in self._seen if isinstance(header, Header) else header is Tag.END
            return Ending.CERTAIN if is_next else Ending.NONE
        if following.kind is Tag.CLOSE_FUNCTION:
            return self._end_of_function(following.end, Ending.TWO_CLOSED, line.is_blank or not self._wrapped)
        if following.kind is Tag.CLOSE_CALL:
            return self._end_of_call(following.end, Ending.TWO_CLOSED)
        return self._after_closing_tags(end, Ending.NONE)

    def _end_of_function(self, end: int, closed: Ending, may_be_last: bool) -> Ending | None:
        following = self._cursor.peek(end)
        if following.kind is Tag.CLOSE_CALL:
            return self._end_of_call(following.end, Ending(closed + 1))
        return self._after_closing_tags(end, closed if may_be_last else Ending.NONE)

    def _end_of_call(self, end: int, closed: Ending) -> Ending | None:
        while (following := self._cursor.peek(end)).kind in (Tag.CLOSE_CALL, Tag.CLOSE_FUNCTION):
            end = following.end  # more closing tags than there is to close
        return self._after_closing_tags(end, closed)

    def _after_closing_tags(self, end: int, before_text: Ending) -> Ending | None:
        """How surely closing tags, the last of which ends at `end`, end the value."""
        following = self._cursor.peek(end)
        if following.kind is Tag.MORE:
            return None
        if following.kind in (Tag.END, Tag.OPEN_CALL, Tag.OPEN_FUNCTION):
            return Ending.CERTAIN
        is_quoted = self._cursor.text[end] in QUOTES
        return before_text if following.kind is Tag.TEXT and not is_quoted else Ending.NONE

    def _only_closing_tags_follow(self, end: int) -> Ending | None:
        """Whether the text ends after these tags: then they are the call's own, and the inner call never was one."""
        for closing in (Tag.CLOSE_FUNCTION, Tag.CLOSE_CALL):
            following = self._cursor.peek(end)
            end = following.end if following.kind is closing else end
        following = self._cursor.peek(end)
        if following.kind is Tag.MORE:
            return None
        return Ending.CERTAIN if following.kind is Tag.END and not self._doubt else Ending.NONE
