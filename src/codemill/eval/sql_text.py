"""SQL as text: its tokens, its statements, the alternatives of a gold query, and what a query is ordered by.

Nothing here knows a dialect well; it knows what is a string, a quoted name, a comment and a bracket, so that a `;` in a
string is none.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

from codemill.eval.fences import blocks

MAX_ALTERNATIVES = 256

_TOKEN = re.compile(
    r"""
      --[^\n]* | /\*(?:[^*]++|\*(?!/))*+(?:\*/)?
    | '(?:[^']++|'')*+'? | "(?:[^"]++|"")*+"? | `[^`]*+`? | \[[A-Za-z_][^\]\n]{0,128}+\]
    | (?P<tag>\$\w*\$).*?(?P=tag)
    | \s+ | \d[\w.]* | [^\W\d]\w* | :: | .
    """,
    re.VERBOSE | re.DOTALL,
)
_EMPTY_GROUP = re.compile(r"\bGROUP\s+BY\s*\{\s*\}", re.IGNORECASE)
_QUERY = re.compile(r"^[ \t(]*(?:select|with|values)\b", re.IGNORECASE | re.MULTILINE)
_NO_NAMES = frozenset(
    "and as asc between by case cast collate desc distinct else end escape false first from glob in integer is isnull"
    " last like limit not notnull null nulls numeric offset or order over partition real text then true when".split()
)


def tokens(text: str) -> list[str]:
    """The text cut into tokens, white space and comments among them: joined, they are the text."""
    return [match[0] for match in _TOKEN.finditer(text)]


def is_space(token: str) -> bool:
    """Whether a token means nothing: white space or a comment."""
    return token.isspace() or token.startswith(("--", "/*"))


def statements(text: str) -> Iterator[str]:
    """The statements of a script, without `;`; those with nothing in them are left out."""
    current: list[str] = []
    for token in chain((match[0] for match in _TOKEN.finditer(text)), ";"):
        if token != ";":
            current.append(token)
            continue
        if not all(map(is_space, current)):
            yield "".join(current).strip()
        current = []


def first_statement(text: str) -> str:
    """The first statement, empty if there is none."""
    return next(statements(text), "")


def query_in(answer: str) -> str:
    """The query in what a model wrote, up to its `;`: what the answer begins with, or what is in its last code block,
    or from the first line on that begins a query."""
    text = answer.lstrip()
    if not _QUERY.match(text):
        found = blocks(answer)
        text = found[-1].code if found else answer
    begin = _QUERY.search(text)
    return first_statement((text[begin.start() :] if begin else text).partition("```")[0])


def alternatives(gold: str) -> list[str]:
    """The queries that a gold answer of sql-eval stands for: those between `;`, and of each with `{a, b}` the queries
    with every choice of these columns, for `GROUP BY {}` too."""
    found = [query for statement in statements(gold) for query in _expanded(tokens(statement))]
    return found[:MAX_ALTERNATIVES]


def _expanded(parts: list[str]) -> list[str]:
    if "{" not in parts or "}" not in parts[parts.index("{") :]:
        return ["".join(parts)]
    start = parts.index("{")
    end = parts.index("}", start)
    options = ["".join(option).strip() for option in _split(parts[start + 1 : end])]
    choices = [", ".join(choice) for size in range(1, len(options) + 1) for choice in combinations(options, size)]
    queries: list[str] = []
    for choice in choices[:MAX_ALTERNATIVES]:
        after = f"GROUP BY {choice}".join(_EMPTY_GROUP.split("".join(parts[end + 1 :])))
        queries += _expanded([*parts[:start], choice, *tokens(after)])
    return queries


def _split(parts: Sequence[str]) -> Iterator[list[str]]:
    """At the commas that are not in brackets."""
    current: list[str] = []
    for token, depth in _with_depth(parts):
        if token == "," and depth == 0:
            yield current
            current = []
        else:
            current.append(token)
    yield current


def _with_depth(parts: Sequence[str]) -> Iterator[tuple[str, int]]:
    depth = 0
    for token in parts:
        depth -= token == ")"
        yield token, depth
        depth += token == "("


@dataclass(frozen=True)
class OrderTerm:
    """One term of ORDER BY. whole: what a column of the result that is this term may be called (lower case, no spaces;
    its number for `ORDER BY 2`). parts: the columns that it is computed from."""

    whole: tuple[str, ...]
    parts: tuple[str, ...]


def order_terms(query: str) -> list[OrderTerm] | None:
    """What the rows of a query's result are ordered by; None if they are not."""
    parts = [token for token in tokens(query) if not is_space(token)]
    top = [i for i, (token, depth) in enumerate(_with_depth(parts)) if depth == 0 and token.lower() in _CLAUSES]
    orders = [i for i in top if parts[i].lower() == "order"]
    if not orders:
        return None
    end = next((i for i in top if i > orders[-1] and parts[i].lower() in ("limit", "offset")), len(parts))
    return [_term(term, parts[: orders[-1]]) for term in _split(parts[orders[-1] + 2 : end])]


_CLAUSES = ("order", "limit", "offset")


def _term(term: list[str], before: Sequence[str]) -> OrderTerm:
    while term and term[-1].lower() in ("asc", "desc", "first", "last", "nulls"):
        term.pop()
    names = [column_name(token) for i, token in enumerate(term) if _is_name(term, i)]
    whole = ["".join(map(column_name, term)), *_aliases(term, before)]
    if len(names) == 1 and len(term) in (1, 3):  # `x` or `t.x`
        whole.append(names[0])
    return OrderTerm(tuple(whole), tuple(names))


def _is_name(term: Sequence[str], i: int) -> bool:
    """Whether a token names a column: no keyword, no function, and not the table before a dot."""
    following = term[i + 1] if i + 1 < len(term) else ""
    is_word = term[i][0].isalpha() or term[i][0] in '_"`['
    return is_word and term[i].lower() not in _NO_NAMES and following not in ("(", ".")


def _aliases(term: Sequence[str], before: Sequence[str]) -> Iterator[str]:
    """What the same expression is called where it is selected."""
    wanted, given = [token.lower() for token in term], [token.lower() for token in before]
    for start in range(len(given) - len(wanted)):
        if given[start : start + len(wanted)] == wanted:
            after = given[start + len(wanted) :]
            if after[0] == "as" and len(after) > 1:
                yield column_name(after[1])


def column_name(token: str) -> str:
    """A name as it is compared: lower case, without quotes."""
    token = token.lower()
    return token[1:-1] if len(token) > 1 and token[0] + token[-1] in ('""', "``", "[]") else token
