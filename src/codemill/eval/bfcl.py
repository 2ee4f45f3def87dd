"""BFCL, the Berkeley Function Calling Leaderboard: which tools a model calls, with which arguments.

Patil et al. 2025, "The Berkeley Function Calling Leaderboard". The single-turn categories of Python functions, judged
by the rules of `bfcl_match`; nothing is run. The tools stand in the prompt in the model's own format, and its answer
goes through the parser that serves every other tool call.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from codemill.chat.reasoning import split_reasoning
from codemill.chat.tool_parser import ToolCallParser
from codemill.chat.tool_types import ToolCall
from codemill.errors import CodemillError, UsageError
from codemill.eval.bfcl_match import calls_fault, underscored
from codemill.eval.records import Record, read_records
from codemill.eval.suite import Answer, DataSource, Judgement, Problem, Prompt, Run, Style, Suite, SuiteOptions

CATEGORIES = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")
_LIVE = (
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
    "live_irrelevance",
    "live_relevance",
)
_SIMPLE = ("simple_python", "simple")  # v4's name and that of the versions before
_KNOWN = (*CATEGORIES, "simple", *_LIVE)
_LONGEST = 100_000  # characters of an answer that are looked at
_WITHOUT_TRUTH = ("irrelevance", "live_irrelevance", "live_relevance")
_FILE = re.compile(r"BFCL_v\d+_(\w+)\.jsonl?(?:\.gz)?")

# The leaderboard's GORILLA_TO_OPENAPI; a type that is not listed becomes a string.
_JSON_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("integer", "byte", "short", "long"), "integer"),
    **dict.fromkeys(("float", "number", "double"), "number"),
    **dict.fromkeys(("boolean", "bool"), "boolean"),
    **dict.fromkeys(("array", "tuple", "list"), "array"),
    **dict.fromkeys(("dict", "object"), "object"),
}


class Bfcl(Suite):
    """`variant` is one category; by default all that the data has count. `--data` is the folder, or one file of it,
    with the acceptable answers in the folder `possible_answer` beside it."""

    name = "bfcl"
    title = "BFCL v4 (single turn, Python)"
    styles = ("chat",)

    def __init__(self, options: SuiteOptions = SuiteOptions()) -> None:  # noqa: B008
        super().__init__(options)
        if options.variant is not None and options.variant not in _KNOWN:
            raise UsageError(f"bfcl has no category {options.variant!r}; it has {', '.join(_KNOWN)}")
        if options.language not in (None, "python"):
            raise UsageError(f"bfcl judges calls of Python functions only, not {options.language!r}")

    def source(self) -> DataSource:
        """All files of the version on the Hub, v3, with `simple` for `simple_python`."""
        return DataSource(repo_id="gorilla-llm/Berkeley-Function-Calling-Leaderboard")

    def load(self, path: Path) -> list[Problem]:
        wanted = self._wanted()
        return [each for file in self._files(path) for each in _problems(file) if each.fields["category"] in wanted]

    def _wanted(self) -> tuple[str, ...]:
        variant = self.options.variant
        if variant is None:
            return _KNOWN
        return _SIMPLE if variant in _SIMPLE else (variant,)

    def _files(self, path: Path) -> list[Path]:
        if not path.is_dir():
            return [path]
        wanted = self._wanted()
        found = {category: file for file in sorted(path.iterdir()) if (category := _category(file)) in wanted}
        if not found:
            raise CodemillError(f"{path} holds no file named like BFCL_v4_{wanted[0]}.json")
        return [found[category] for category in wanted if category in found]

    def prompt(self, problem: Problem, style: Style) -> Prompt:
        return Prompt(
            messages=tuple(problem.fields["messages"]), tools=tuple(tools(problem.fields["function"])), max_tokens=1024
        )

    def clean(self, problem: Problem, raw: str, style: Style) -> Answer:
        """The raw text: the parser takes the calls out of it."""
        return Answer(raw, whole=True)

    def judge(self, problem: Problem, answer: Answer, run: Run) -> Judgement:
        functions, category = problem.fields["function"], problem.fields["category"]
        calls = parse_calls(answer.text, functions)
        if category.endswith("irrelevance"):
            fault = f"{calls[0].name!r} is called, though no tool fits" if calls else ""
        elif category.endswith("relevance"):
            fault = "" if calls else "no tool is called"
        else:
            fault = calls_fault(functions, problem.fields["ground_truth"], calls)
        return Judgement("failed" if fault else "ok", fault[:2000])

    def gold(self, problem: Problem) -> Answer | None:
        """The acceptable answer, written as Qwen3-Coder writes calls."""
        if problem.fields["category"] == "live_relevance":
            return None
        truth = problem.fields["ground_truth"]
        return Answer("\n".join(_rendered(expected, problem.fields["function"]) for expected in truth), whole=True)


def tools(functions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """BFCL's function descriptions as OpenAI tools with JSON schemas; the types mapped as the leaderboard does."""
    return [{"type": "function", "function": _tool(function)} for function in functions]


def parse_calls(text: str, functions: Sequence[Mapping[str, Any]]) -> tuple[ToolCall, ...]:
    """The calls in an answer: in Qwen3-Coder's XML, in Hermes tags, or as a JSON list of calls.

    A name with dots may be written with underscores. Nothing that a text may contain raises.
    """
    text = split_reasoning(text).content[:_LONGEST]
    listed = _json_calls(text)
    if listed is not None:
        return listed
    known = tools(functions)
    renamed = [{**function, "name": underscored(function["name"])} for function in functions if "." in function["name"]]
    return ToolCallParser([*known, *tools(renamed)]).parse(text).tool_calls


def _category(file: Path) -> str | None:
    match = _FILE.fullmatch(file.name)
    return match[1] if match else None


def _problems(file: Path) -> Iterator[Problem]:
    needed = {"id": str, "question": list, "function": list}
    records = list(read_records(file, needed, key="id"))
    truths = _truths(file, records)
    for record in records:
        category = _category_of(record)
        truth = [] if category in _WITHOUT_TRUTH else truths.get(record.fields["id"])
        if truth is None:
            raise CodemillError(f"{record.where}: {record.fields['id']!r} has no entry among the possible answers")
        fields = {**record.fields, "function": _functions(record), "messages": _messages(record)}
        yield Problem(record.fields["id"], {**fields, "category": category, "ground_truth": truth})


def _category_of(record: Record) -> str:
    category = re.split(r"_\d", record.fields["id"], maxsplit=1)[0]
    if category not in _KNOWN:
        raise CodemillError(f"{record.where}: the category {category!r} is none of {', '.join(_KNOWN)}")
    return category


def _functions(record: Record) -> list[Any]:
    for function in record.fields["function"]:
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise CodemillError(f"{record.where}: a function is no object with a name")
        if not isinstance(function.get("parameters"), dict):
            raise CodemillError(f"{record.where}: the function {function['name']!r} has no parameters")
    return list(record.fields["function"])


def _messages(record: Record) -> list[Any]:
    """The one turn there is; each turn is a list of messages."""
    question = record.fields["question"]
    turn = question[0] if question and isinstance(question[0], list) else question
    if not turn or not all(isinstance(message, dict) and "content" in message for message in turn):
        raise CodemillError(f"{record.where}: the question is no list of turns with messages")
    return list(turn)


def _truths(file: Path, records: Sequence[Record]) -> dict[str, list[Any]]:
    if all(_category_of(record) in _WITHOUT_TRUTH for record in records):
        return {}
    answers = file.parent / "possible_answer" / file.name
    if not answers.is_file():
        raise CodemillError(f"{answers} is missing: the acceptable answers to {file.name} have to lie there")
    truths = {}
    for record in read_records(answers, {"id": str, "ground_truth": list}, key="id"):
        truths[record.fields["id"]] = record.fields["ground_truth"]
        if not all(map(_is_expected, record.fields["ground_truth"])):
            raise CodemillError(f"{record.where}: a ground truth is no object of one function with lists of values")
    return truths


def _is_expected(truth: Any) -> bool:
    if not isinstance(truth, dict) or len(truth) != 1:
        return False
    arguments = next(iter(truth.values()))
    return isinstance(arguments, dict) and all(isinstance(values, list) for values in arguments.values())


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    return {**function, "parameters": _schema({**function["parameters"], "type": "dict"})}


def _schema(schema: Any) -> Any:
    """A JSON schema of the same; `float` keeps its name as the format."""
    if not isinstance(schema, Mapping):
        return schema
    kind = str(schema.get("type"))
    mapped: dict[str, Any] = {**schema, "type": _JSON_TYPES.get(kind, "string")}
    if kind == "float":
        mapped.setdefault("format", "float")
    if isinstance(schema.get("properties"), Mapping):
        mapped["properties"] = {name: _schema(inner) for name, inner in schema["properties"].items()}
    if "items" in schema:
        mapped["items"] = _schema(schema["items"])
    return mapped


def _json_calls(text: str) -> tuple[ToolCall, ...] | None:
    """The calls of an answer that is JSON as a whole; None if it is no list of calls."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    calls = [_json_call(item) for item in (listed if isinstance(listed, list) else [listed])]
    return None if None in calls else tuple(call for call in calls if call is not None)


def _json_call(item: Any) -> ToolCall | None:
    """`{"name", "arguments"}`, the same in OpenAI's wrapper, or the leaderboard's own `{NAME: ARGUMENTS}`."""
    item = item.get("function", item) if isinstance(item, dict) else None
    if not isinstance(item, dict):
        return None
    pairs = [(item["name"], item.get("arguments"))] if "name" in item else list(item.items())
    if len(pairs) != 1 or not isinstance(pairs[0][0], str):
        return None
    name, arguments = pairs[0]
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return None
    return ToolCall(name, arguments or {}) if isinstance(arguments, dict | None) else None


def _rendered(expected: Mapping[str, Mapping[str, Sequence[Any]]], functions: Sequence[Mapping[str, Any]]) -> str:
    name, arguments = next(iter(expected.items()))
    required = next((f["parameters"].get("required") for f in functions if f["name"] == name), None) or ()
    lines = ["<tool_call>", f"<function={name}>"]
    for key, values in arguments.items():
        if key in required or "" not in values:
            lines += [f"<parameter={key}>", _text(_choice(values)), "</parameter>"]
    return "\n".join([*lines, "</function>", "</tool_call>"])


def _choice(values: Sequence[Any]) -> Any:
    """The first acceptable value, with one chosen for each key of the dicts in it."""
    return _chosen(next((value for value in values if value != ""), ""))


def _chosen(value: Any) -> Any:
    if isinstance(value, list):
        return [_chosen(element) if isinstance(element, dict) else element for element in value]
    if not isinstance(value, dict):
        return value
    return {key: _choice(options) if isinstance(options, list) else options for key, options in value.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
