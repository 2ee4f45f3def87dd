"""HumanEval-infilling: HumanEval's solutions with a hole, to be filled from both sides.

Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle" (arXiv 2207.14255); files and
programs as in openai/human-eval-infilling.
"""

from pathlib import Path

from codemill.errors import UsageError
from codemill.eval.cleaning import SPECIAL_TOKENS, cut_at_first
from codemill.eval.python_program import judge_program
from codemill.eval.records import Kind, find_file, read_records
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
)

VARIANTS = ("single", "multi", "span", "light")
_FILES = {
    "single": "HumanEval-SingleLineInfilling.jsonl.gz",
    "multi": "HumanEval-MultiLineInfilling.jsonl.gz",
    "span": "HumanEval-RandomSpanInfilling.jsonl.gz",
    "light": "HumanEval-RandomSpanInfillingLight.jsonl.gz",
}
_NEEDED: dict[str, Kind] = dict.fromkeys(("prompt", "suffix", "canonical_solution", "test", "entry_point"), str)
_SINGLE_LINE = "SingleLineInfilling/"


class Infilling(Suite):
    """`variant`: what is missing. "single" (the default), one line (1033 problems); "multi", several lines (5815);
    "span", from one character to another (1640); "light", one such span for each task (164)."""

    name = "humaneval-infilling"
    title = "HumanEval-infilling"
    styles = ("fim",)

    def __init__(self, options: SuiteOptions = SuiteOptions()) -> None:  # noqa: B008
        super().__init__(options)
        if options.variant not in (None, *VARIANTS):
            raise UsageError(f"{self.name} has no variant {options.variant!r}: it has {', '.join(VARIANTS)}")
        if options.language not in (None, "python"):
            raise UsageError(f"{self.name} is in Python alone, not in {options.language}")

    @property
    def _file_name(self) -> str:
        return _FILES[self.options.variant or "single"]

    def source(self) -> DataSource:
        return DataSource(
            url=f"https://raw.githubusercontent.com/openai/human-eval-infilling/master/data/{self._file_name}"
        )

    def load(self, path: Path) -> list[Problem]:
        stem = self._file_name.removesuffix(".gz")
        return [
            Problem(str(record.fields["task_id"]), record.fields)
            for record in read_records(find_file(path, (f"{stem}*", "*nfilling*.jsonl*")), _NEEDED)
        ]

    def prompt(self, problem: Problem, style: Style) -> Prompt:
        # No newline among the stops: some models begin with one.
        max_tokens = 128 if _is_whole_line(problem) else 512
        return Prompt(prefix=problem.fields["prompt"], suffix=problem.fields["suffix"], max_tokens=max_tokens)

    def clean(self, problem: Problem, raw: str, style: Style) -> Answer:
        """What stands before a token that ends the text; where one line is missing, the first one with anything in it.

        A model that stops at the end of a line, which the suffix does not begin, gets its newline.
        """
        text = cut_at_first(raw.replace("\r\n", "\n"), SPECIAL_TOKENS)
        if not _is_whole_line(problem):
            return Answer(text)
        start = len(text) - len(text.lstrip("\n"))
        return Answer(text[start:].partition("\n")[0] + "\n")

    def judge(self, problem: Problem, answer: Answer, run: Run) -> Judgement:
        fields = problem.fields
        start = answer.text if answer.whole else fields["prompt"] + answer.text + fields["suffix"]
        return judge_program(run, f"{start}\n{fields['test']}\ncheck({fields['entry_point']})")

    def gold(self, problem: Problem) -> Answer | None:
        return Answer(problem.fields["canonical_solution"])


def _is_whole_line(problem: Problem) -> bool:
    """Whether one line is missing. Its indentation and its newline are missing with it."""
    return problem.task_id.startswith(_SINGLE_LINE)
