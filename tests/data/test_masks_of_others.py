"""Our loss masks against those of `transformers` and TRL, for the same conversations and templates.

Theirs come from `{% generation %}` markers that TRL puts into copies of the templates. They differ from ours on
purpose: they learn the newline after the end of a turn and what the generation prompt writes, which no model writes.
"""

from pathlib import Path
from typing import Any

import pytest

from codemill.chat import Tokenizer
from codemill.data.chat_encoder import ExampleEncoder
from codemill.data.conversation_formats import parse_example
from data.conversations import CHAT, REASONING, TOOLS, call, user, with_template

transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in TEMPLATES.glob("qwen*_training.jinja") if "vl" not in path.stem)


def _parsed(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its calls' arguments as mappings, which is all that transformers takes."""
    calls = [call(each["function"]["name"], {"path": [1, {"b": None}]}, each["id"]) for each in message["tool_calls"]]
    return {**message, "tool_calls": calls}


MESSAGES = [_parsed(message) if "tool_calls" in message else message for message in TOOLS["messages"]]
CASES = {
    "chat": CHAT,
    "tools": {**TOOLS, "messages": MESSAGES},
    "reasoning": REASONING,
    "no answer last": {"messages": [*CHAT["messages"], user("?")]},
}


def theirs(tokenizer_json: Path, template: str, record: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Ids and mask of transformers, as TRL asks for them."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_json))
    tokenizer.chat_template = template
    encoded = tokenizer.apply_chat_template(
        record["messages"], tools=record.get("tools"), return_assistant_tokens_mask=True, return_dict=True
    )
    return encoded["input_ids"], encoded["assistant_masks"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_tokens_are_learned(name: str, case: str, embedded_json: Path, tmp_path: Path) -> None:
    record, template = CASES[case], (TEMPLATES / f"{name}.jinja").read_text()
    tokenizer = with_template(embedded_json, template, tmp_path)
    document = ExampleEncoder(tokenizer).encode(parse_example(record))
    ids, mask = theirs(embedded_json, template, record)
    assert sum(mask) > 0
    assert tokenizer.decode(document.ids.tolist()) == tokenizer.decode(ids)
    expected = _without_newlines_after_turns(tokenizer, ids, mask)
    ours = _characters(tokenizer, document.ids.tolist(), document.weights.tolist())
    assert ours == _without_openings(expected, _given(tokenizer, record))


def _characters(tokenizer: Tokenizer, ids: list[int], mask: list[float]) -> list[tuple[str, bool]]:
    """The characters with whether they are learned: both may cut the same text into other tokens."""
    return [(chr(byte), bool(m)) for i, m in zip(ids, mask, strict=True) for byte in tokenizer.token_bytes(i)]


def _without_newlines_after_turns(tokenizer: Tokenizer, ids: list[int], mask: list[int]) -> list[tuple[str, bool]]:
    end = tokenizer.control_tokens["<|im_end|>"]
    changed = [m and not (i and ids[i - 1] == end) for i, m in enumerate(mask)]
    return _characters(tokenizer, ids, changed)


def _given(tokenizer: Tokenizer, record: dict[str, Any]) -> str:
    """What the generation prompt writes after the role, which a server gives to the model."""
    prompt = tokenizer.render([user("?")], record.get("tools"), add_generation_prompt=True)
    return prompt.rpartition("<|im_start|>assistant")[2]


def _without_openings(characters: list[tuple[str, bool]], given: str) -> list[tuple[str, bool]]:
    """The same with what is given at the start of each learned stretch not learned; some learn its first newline."""
    result = list(characters)
    for i, (_, is_learned) in enumerate(characters):
        if is_learned and not (i and characters[i - 1][1]):
            text = "".join(character for character, _ in characters[i : i + len(given)])
            size = next((len(start) for start in (given, given[1:], "\n") if start and text.startswith(start)), 0)
            result[i : i + size] = [(character, False) for character, _ in characters[i : i + size]]
    return result
