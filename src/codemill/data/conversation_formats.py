"""What a record of training data says: a conversation, a text to continue, or a pair of which one is preferred.

The formats are those of docs/data_formats.md. Faults are UsageErrors that name the message; the caller adds file and
line.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codemill.chat.messages import normalize_messages, normalize_tools
from codemill.data.other_formats import to_our_form
from codemill.data.tool_results import check_tool_results
from codemill.errors import UsageError

Json = Mapping[str, Any]
_KNOWN = (
    '{"messages"}, {"prompt", "completion"}, {"text"}, {"repo", "path", "content"}, {"conversations"}, '
    '{"instruction", "output"} or, for DPO, {"prompt", "chosen", "rejected"}'
)
_WEIGHTS = ("weight", "train", "training", "loss")


class NothingToLearn(UsageError):
    """A record that would teach nothing, or to say nothing."""


@dataclass(frozen=True)
class Conversation:
    """Messages and tools in the form that templates take; weights: of each message, 0 but for learned ones."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Continuation:
    """Text without a chat format: `completion` is learned, `prompt` is given. is_text: it was {"text"} alone."""

    prompt: str
    completion: str
    is_text: bool = False


Example = Conversation | Continuation


@dataclass(frozen=True)
class ExamplePair:
    """Two answers to one prompt."""

    chosen: Example
    rejected: Example


def parse_example(record: Json, only_last_turn_loss: bool = False) -> Example:
    """What to learn from a record. Raises UsageError naming what is wrong with it."""
    record = to_our_form(record)
    if "messages" in record:
        return _conversation(record, only_last_turn_loss)
    if "chosen" in record or "rejected" in record:
        raise UsageError("a preference pair is for DPO; give {messages} or {prompt, completion} to learn from")
    if "completion" in record:
        return _answer(record, "prompt", "completion", only_last_turn_loss)
    for key in ("text", "content"):
        if key in record:
            return _whole_text(record, key)
    raise UsageError(f"keys {', '.join(map(repr, record)) or 'none'}: a record is {_KNOWN}")


def parse_pair(record: Json, only_last_turn_loss: bool = False) -> ExamplePair:
    """The two examples of a preference; without a "prompt" it is what both begin with. Raises UsageError."""
    record = to_our_form(record)
    missing = [key for key in ("chosen", "rejected") if record.get(key) is None]
    if missing:
        raise UsageError(f"no key {missing[0]!r}: a preference pair is {{prompt, chosen, rejected}}")
    if isinstance(record["chosen"], str) != isinstance(record["rejected"], str):
        raise UsageError("chosen and rejected must both be texts or both be lists of messages")
    if record["chosen"] == record["rejected"]:
        raise NothingToLearn("chosen and rejected are the same: there is nothing to prefer")
    record = {**record, **_prompt_and_answers(record.get("prompt"), record["chosen"], record["rejected"])}
    return ExamplePair(
        _answer(record, "prompt", "chosen", only_last_turn_loss),
        _answer(record, "prompt", "rejected", only_last_turn_loss),
    )


def parse_prompt(record: Json) -> Example:
    """What to answer: the "prompt", or the messages before the last answer. All weights are 0. Raises UsageError."""
    record = to_our_form(record)
    prompt = record.get("prompt", record.get("messages"))
    if isinstance(prompt, str):
        return Continuation(prompt, "")
    if prompt is None:
        raise UsageError('neither "prompt" nor "messages": there is nothing to answer')
    messages = _messages(prompt)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise UsageError("no message stands before the answer: there is nothing to answer")
    return Conversation(messages, _tools(record), (0.0,) * len(messages))


def parse_domain(record: Json) -> str:
    """The record's "domain", which picks the teacher in distillation; "" if it has none. Raises UsageError."""
    domain = record.get("domain") or ""
    if not isinstance(domain, str):
        raise UsageError(f"domain must be text, found {type(domain).__name__}")
    return domain


def _conversation(record: Json, only_last: bool) -> Conversation:
    if record.get("format", "chatml") != "chatml":
        raise UsageError(f"format {record['format']!r}: only 'chatml' is known; the model's own template is used")
    messages = _messages(record["messages"])
    return Conversation(messages, _tools(record), _weights(messages, 0, _only_last(record, only_last)))


def _answer(record: Json, prompt_key: str, answer_key: str, only_last: bool) -> Example:
    prompt, answer = record.get(prompt_key) or "", record[answer_key]
    if isinstance(prompt, str) and isinstance(answer, str):
        if not answer.strip():
            raise NothingToLearn(f"nothing to learn from: {answer_key} is empty")
        return Continuation(prompt, answer)
    given, said = _as_messages(prompt, "user", prompt_key), _as_messages(answer, "assistant", answer_key)
    messages = _messages([*given, *said])
    return Conversation(messages, _tools(record), _weights(messages, len(given), _only_last(record, only_last)))


def _as_messages(value: Any, role: str, key: str) -> list[Any]:
    """A text beside messages is one itself."""
    if isinstance(value, str):
        return [{"role": role, "content": value}] if value else []
    if not isinstance(value, list):
        raise UsageError(f"{key} must be text or a list of messages, found {type(value).__name__}")
    return value


def _messages(value: Any) -> list[dict[str, Any]]:
    messages = normalize_messages(value)
    for i, message in enumerate(messages):
        _check_content(message, value[i].get("content"), f"message {i}")
    check_tool_results(messages)
    return messages


def _check_content(message: Json, content: Any, where: str) -> None:
    """What would be dropped without a word is an error: calls that no assistant makes, content under another name."""
    role = message["role"]
    if message.get("tool_calls") and role != "assistant":
        raise UsageError(f"{where}: only the assistant calls tools, not the {role}")
    if content is None and role in ("system", "user"):
        raise UsageError(f"{where}: the {role}'s message has no content")


def _tools(record: Json) -> list[dict[str, Any]]:
    """The tools, which many data sets store as JSON text, because the columns of a table have one type."""
    tools = record.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise UsageError(f"tools: not valid JSON: {error}") from None
    return normalize_tools(tools)


def _only_last(record: Json, default: bool) -> bool:
    value = record.get("only_last_turn_loss", default)
    if not isinstance(value, bool):
        raise UsageError(f"only_last_turn_loss must be true or false, found {value!r}")
    return value


def _weights(messages: Sequence[Json], first: int, only_last: bool) -> tuple[float, ...]:
    """The loss weight of each message: those before `first` are given."""
    weights = [_weight(message, f"message {i}") if i >= first else 0.0 for i, message in enumerate(messages)]
    if only_last:
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        weights = [weight if i == last else 0.0 for i, weight in enumerate(weights)]
    for i, (message, weight) in enumerate(zip(messages, weights, strict=True)):
        if weight and not (message["content"].strip() or message.get("tool_calls") or message.get("reasoning_content")):
            raise NothingToLearn(f"message {i}: the assistant says nothing, and would learn to")
    if not any(weights):
        raise NothingToLearn("nothing to learn from: no message of the assistant has a loss weight")
    return tuple(weights)


def _weight(message: Json, where: str) -> float:
    weight = next((message[key] for key in _WEIGHTS if message.get(key) is not None), None)
    if weight is None:
        return float(message["role"] == "assistant")
    if not isinstance(weight, bool | int | float) or not 0 <= weight < math.inf:
        raise UsageError(f"{where}: a weight is a number that is not negative, found {weight!r}")
    if weight and message["role"] != "assistant":
        raise UsageError(f"{where}: only the assistant's messages can be learned, not the {message['role']}'s")
    return float(weight)


def _whole_text(record: Json, key: str) -> Continuation:
    text = record[key]
    if not isinstance(text, str):
        raise UsageError(f"{key} must be text, found {type(text).__name__}")
    if not text.strip():
        raise NothingToLearn(f"nothing to learn from: {key} is empty")
    return Continuation("", text, is_text=True)


def _prompt_and_answers(prompt: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
    """The prompt apart from the answers: many data sets repeat it there, as messages, and give it as a text besides."""
    are_lists = isinstance(chosen, list) and isinstance(rejected, list)
    if prompt is None or (isinstance(prompt, str) and are_lists and chosen[:1] == rejected[:1]):
        return _implicit_prompt(chosen, rejected)
    if are_lists and isinstance(prompt, list) and chosen[: len(prompt)] == rejected[: len(prompt)] == prompt:
        return {"chosen": chosen[len(prompt) :], "rejected": rejected[len(prompt) :]}
    return {}


def _implicit_prompt(chosen: Any, rejected: Any) -> dict[str, Any]:
    """What both answers begin with, taken off them (as TRL's `extract_prompt`)."""
    if type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
        raise UsageError("chosen and rejected must both be texts or both be lists of messages")
    shortest = min(len(chosen), len(rejected))
    end = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest)
    if isinstance(chosen, str) and chosen[end - 1 : end] == " ":
        end -= 1  # a space begins a word's token
    if not end:
        raise UsageError("chosen and rejected begin differently: give the prompt that they answer")
    return {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}
