"""PostgreSQL scripts, as sql-eval's databases are written, made into SQLite.

Not a translator of PostgreSQL: it knows what dumps and hand-made test data use. Casts, schemas and sequences go; dates
and times become text as SQLite's own functions write it, and arithmetic on them calls the functions of `sql_dates`.
"""

import re

from codemill.eval.sql_text import is_space, statements, tokens

_SKIPPED = re.compile(
    r"(?is)(?:set|alter|comment|grant|revoke|analyze|vacuum|lock|select|do"
    r"|(?:create|drop)\s+(?:or\s+replace\s+)?(?:unique\s+)?(?:schema|extension|sequence|type|function|index|role|database))\b"
)
_BEFORE_A_TABLE = frozenset({"table", "into", "references", "exists", "only", "from", "join", "update", "view"})
_SECOND_WORDS = frozenset({"varying", "precision", "with", "without", "time", "zone"})
_SERIALS = frozenset({"serial", "bigserial", "smallserial", "serial4", "serial8"})
_RENAMED = {"date_trunc": "pg_trunc", "to_char": "pg_format"}


def to_sqlite(script: str) -> list[str]:
    """The statements of a script in SQLite's dialect. Statements that mean nothing to SQLite are left out."""
    found = [_Statement(statement).translated() for statement in statements(script) if not _is_skipped(statement)]
    return [statement for statement in found if statement]


def _is_skipped(statement: str) -> bool:
    parts = [token for token in tokens(statement) if not is_space(token)]
    return _SKIPPED.match(" ".join(parts[:6])) is not None or statement.startswith("\\")


class _Statement:
    """One statement: tokens are taken from `left` and what they become is put to `out`."""

    def __init__(self, text: str) -> None:
        self._left = tokens(text)
        self._at = 0
        self._out: list[str] = []

    def translated(self) -> str:
        while self._at < len(self._left):
            self._step()
        return "".join(self._out).strip()

    def _step(self) -> None:
        token = self._next(keep_space=True)
        word = token.lower()
        if token == "::":
            self._drop_type()
        elif word == "interval" and self._peek().startswith("'"):
            self._add_interval(self._next())
        elif word in _BEFORE_A_TABLE:
            self._out.append(token)
            self._drop_schema()
        elif word in ("date", "timestamp", "timestamptz") and self._peek().startswith("'"):
            self._out.append(self._next())
        elif word == "now" and self._peek() == "(":
            self._skip(2)
            self._out.append("CURRENT_TIMESTAMP")
        elif word == "extract" and self._peek() == "(":
            self._extract()
        elif word == "default" and self._peek(1) == "(":
            self._default()
        elif word == "generated":
            self._drop_identity()
        else:
            self._out.append("INTEGER" if word in _SERIALS else _RENAMED.get(word, token))

    # Reading

    def _next(self, keep_space: bool = False) -> str:
        while not keep_space and is_space(self._left[self._at]):
            self._at += 1
        self._at += 1
        return self._left[self._at - 1]

    def _peek(self, offset: int = 0) -> str:
        """A token further on, white space aside; empty if there is none."""
        rest = (token for token in self._left[self._at :] if not is_space(token))
        return next((token for i, token in enumerate(rest) if i == offset), "")

    def _skip(self, count: int) -> None:
        for _ in range(count):
            self._next()

    def _brackets(self) -> list[str]:
        """The tokens from the `(` that comes next to its `)`."""
        taken, depth = [], 0
        while self._at < len(self._left):
            token = self._next(keep_space=True)
            taken.append(token)
            depth += (token == "(") - (token == ")")
            if depth == 0 and token == ")":
                break
        return taken

    # Rewriting

    def _drop_type(self) -> None:
        self._skip(1)
        while self._peek().lower() in _SECOND_WORDS:
            self._skip(1)
        if self._peek() == "(":
            self._brackets()
        while self._peek() == "[" and self._peek(1) == "]":
            self._skip(2)

    def _drop_schema(self) -> None:
        if self._peek().lower() in ("if", "only", "not"):
            return
        if self._peek(1) == ".":
            self._skip(2)
            self._out.append(" ")

    def _add_interval(self, literal: str) -> None:
        """`X - INTERVAL 'N days'` -> `pg_add(X, '-', 'N days')`, where X is the last thing before the sign."""
        at = self._last(len(self._out))
        if at < 0 or self._out[at] not in "+-":
            self._out.append(literal)
            return
        start = self._operand(self._last(at))
        operand = self._out[start:at]
        self._out[start:] = ["pg_add", "(", *operand, ", ", f"'{self._out[at]}'", ", ", literal, ")"]

    def _last(self, end: int) -> int:
        """The last token before `end` that is no white space; -1 if there is none."""
        return next((i for i in range(end - 1, -1, -1) if not is_space(self._out[i])), -1)

    def _operand(self, end: int) -> int:
        """Where the name, literal, call or bracket begins that ends at `end`."""
        if end < 0 or self._out[end] != ")":
            return max(end, 0)
        depth = 0
        for i in range(end, -1, -1):
            depth += (self._out[i] == ")") - (self._out[i] == "(")
            if depth == 0:
                name = self._last(i)
                return name if name >= 0 and re.fullmatch(r"\w+", self._out[name]) else i
        return 0

    def _extract(self) -> None:
        """`EXTRACT(field FROM x)` -> `pg_extract('field', x)`"""
        inner = self._brackets()[1:-1]
        words = [i for i, token in enumerate(inner) if token.lower() == "from"]
        field = "".join(inner[: words[0]]).strip(" '") if words else ""
        rest = "".join(inner[words[0] + 1 :]) if words else "".join(inner)
        self._out += ["pg_extract", "(", f"'{field}', ", *tokens(_Statement(rest).translated()), ")"]

    def _default(self) -> None:
        """SQLite wants brackets around a call; a sequence's next value is what it does by itself."""
        name = self._next()
        call = self._brackets()
        if name.lower() == "nextval":
            return
        self._out += ["DEFAULT (", _Statement(name + "".join(call)).translated(), ")"]

    def _drop_identity(self) -> None:
        """`GENERATED ... AS IDENTITY (...)`"""
        while self._peek() and self._next().lower() != "identity":
            pass
        if self._peek() == "(":
            self._brackets()
