"""CRUXEval: what a function returns for an input (`output`), or an input for which it returns a value (`input`).

Gu et al. 2024, "CRUXEval: A Benchmark for Code Reasoning, Understanding and Execution". The few-shot prompts without
reasoning, in the tags of the authors; judged by running the function.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from codemill.chat.reasoning import split_reasoning
from codemill.errors import UsageError
from codemill.eval import cruxeval_program
from codemill.eval.fences import blocks
from codemill.eval.records import find_file, read_records
from codemill.eval.suite import (
    Answer,
    DataSource,
    Judgement,
    Problem,
    Prompt,
    Run,
    Style,
    Suite,
    SuiteOptions,
    judgement_of,
)
from codemill.sandbox.job import Limits, python_job

_LIMITS = Limits(cpu_seconds=3.0)  # the authors' time
_LONGEST = 100_000  # characters of an answer that is looked at
_URL = "https://raw.githubusercontent.com/facebookresearch/cruxeval/190faf16d175b5847b0af05d937872b1fb395942/data/"
_END = "[/ANSWER]"

_OUTPUT_PROMPT = """\
Each of the following Python functions is called in an assertion whose right side is missing. Write the assertion \
again with the value that the call returns, even if the function looks wrong. The value has to be a literal: no \
function calls, nothing left to compute. Put the whole assertion between [ANSWER] and [/ANSWER], as in the examples, \
and write nothing else.

[PYTHON]
def f(words):
    return [w for w in words if len(w) > 3]
assert f(["tree", "sky", "river"]) == ??
[/PYTHON]
[ANSWER]
assert f(["tree", "sky", "river"]) == ["tree", "river"]
[/ANSWER]

[PYTHON]
def f(n, step):
    while n % step:
        n += 1
    return n
assert f(17, 5) == ??
[/PYTHON]
[ANSWER]
assert f(17, 5) == 20
[/ANSWER]

[PYTHON]
{code}
assert f({input}) == ??
[/PYTHON]
"""
_INPUT_PROMPT = """\
Each of the following Python functions is called in an assertion whose arguments are missing. Find arguments for which \
the function returns the value on the right side; if there are several, any will do, but give only one. Put the whole \
assertion with your arguments between [ANSWER] and [/ANSWER], as in the examples, and write nothing else.

[PYTHON]
def f(numbers):
    return sum(1 for n in numbers if n < 0)
assert f(??) == 2
[/PYTHON]
[ANSWER]
assert f([-3, 8, -1]) == 2
[/ANSWER]

[PYTHON]
def f(text, mark):
    return mark + text + mark
assert f(??) == "--ok--"
[/PYTHON]
[ANSWER]
assert f("ok", "--") == "--ok--"
[/ANSWER]

[PYTHON]
{code}
assert f(??) == {output}
[/PYTHON]
"""


class CruxEval(Suite):
    """`variant` is what is predicted: "output" (the default) or "input"."""

    name = "cruxeval"
    title = "CRUXEval"
    styles = ("base", "chat")

    def __init__(self, options: SuiteOptions = SuiteOptions()) -> None:  # noqa: B008
        super().__init__(options)
        if options.variant not in (None, "output", "input"):
            raise UsageError(f"cruxeval has no variant {options.variant!r}; it has output and input")
        if options.language not in (None, "python"):
            raise UsageError(f"cruxeval is in Python only, not in {options.language!r}")
        self._wants_input = options.variant == "input"

    def source(self) -> DataSource:
        return DataSource(url=f"{_URL}cruxeval.jsonl")

    def load(self, path: Path) -> list[Problem]:
        file = find_file(path, ("cruxeval*.jsonl*", "test*.jsonl*", "*.jsonl*"))
        records = read_records(file, {"code": str, "input": str, "output": str, "id": str}, key="id")
        return [Problem(record.fields["id"], record.fields) for record in records]

    def prompt(self, problem: Problem, style: Style) -> Prompt:
        # Not str.format: the function may contain braces.
        text = _INPUT_PROMPT if self._wants_input else _OUTPUT_PROMPT
        for field in ("output", "input", "code"):
            text = text.replace(f"{{{field}}}", problem.fields[field])
        if style == "chat":
            return Prompt(messages=({"role": "user", "content": text},), stop=(_END,), max_tokens=256)
        return Prompt(text=f"{text}[ANSWER]\n", stop=(_END,), max_tokens=256)

    def clean(self, problem: Problem, raw: str, style: Style) -> Answer:
        return Answer(predicted(raw, self._wants_input, last=style == "chat"))

    def judge(self, problem: Problem, answer: Answer, run: Run) -> Judgement:
        if len(answer.text) > _LONGEST:
            return Judgement("failed", f"an answer of {len(answer.text)} characters")
        text = predicted(answer.text, self._wants_input)
        given = problem.fields["output" if self._wants_input else "input"]
        check = cruxeval_program.check_input if self._wants_input else cruxeval_program.check_output
        program = Path(cruxeval_program.__file__).read_text(encoding="utf-8")
        call = f"{check.__name__}(*{(problem.fields['code'], given, text)!r})"
        return judgement_of(run(python_job(f"{program}\n\n{call}\n", limits=_LIMITS)))

    def gold(self, problem: Problem) -> Answer | None:
        return Answer(f"f({problem.fields['input']})" if self._wants_input else problem.fields["output"])

    def preload(self) -> Sequence[str]:
        return ("ast", "collections", "decimal", "fractions", "math")


def predicted(raw: str, wants_input: bool, last: bool = False) -> str:
    """The call of `f` or the value that an answer names, in whatever of the usual forms: between [ANSWER] tags, in a
    code fence, as the whole assertion or the missing side alone. Of several lines without an assertion, the first
    counts, or the last."""
    text = split_reasoning(raw[:_LONGEST]).content
    text = text.partition(_END)[0].rpartition("[ANSWER]")[2]
    fenced = blocks(text)
    text = fenced[-1].code if fenced else text
    lines = [line for line in _logical_lines(text) if line.strip()]
    assertion = next((line.strip() for line in lines if re.match(r"\s*assert\b", line)), None)
    if assertion is None:
        line = lines[-1 if last else 0] if lines else ""
        return _side(line.strip().strip("`"), wants_input)
    condition = _unwrapped(assertion.removeprefix("assert").strip())
    return _first_part(_side(condition, wants_input), ",")  # after a comma stands the assertion's message


_TOKEN = re.compile(
    r"""(?s:'''(?:\\.|[^\\])*?'''|\"\"\"(?:\\.|[^\\])*?\"\"\")|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|"""
    r"""\#[^\n]*|==|[()\[\]{},\n]"""
)


def _top_level(text: str) -> Iterator[tuple[str, int]]:
    """The tokens outside of brackets, with where they begin: `==`, commas, newlines, comments, closing brackets."""
    depth = 0
    for match in _TOKEN.finditer(text):
        depth += (match[0] in "([{") - (match[0] in ")]}")
        if depth <= 0:
            depth = 0
            yield match[0], match.start()


def _logical_lines(text: str) -> Iterator[str]:
    """Lines, where those within brackets or a string are one; without comments."""
    start, end = 0, None
    for token, position in _top_level(text):
        if token.startswith("#"):
            end = position
        elif token == "\n":
            yield text[start : position if end is None else end]
            start, end = position + 1, None
    yield text[start:end]


def _side(text: str, left: bool) -> str:
    """One side of `... == ...`, or all of a text that is no comparison."""
    for token, position in _top_level(text):
        if token == "==":
            return text[:position].strip() if left else _first_part(text[position + 2 :], "==")
    return text


def _first_part(text: str, separator: str) -> str:
    return next((text[:at] for token, at in _top_level(text) if token == separator), text).strip()


def _unwrapped(text: str) -> str:
    """Without the brackets around the whole, if it is a comparison inside them."""
    closings = [position for token, position in _top_level(text) if token == ")"]
    if text.startswith("(") and closings and closings[0] == len(text) - 1 and _side(text[1:-1], True) != text[1:-1]:
        return text[1:-1].strip()
    return text
