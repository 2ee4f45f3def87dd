import dataclasses
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from chat.chat_cases import CASES, CONTROL_CASE, Case
from chat.chat_checks import one_line
from codemill.chat import Tokenizer
from codemill.chat.template import ChatTemplate
from codemill.errors import UsageError

TEMPLATES = [
    "QwQ-32B",
    "Qwen2.5-7B-Instruct",
    "Qwen3-0.6B",
    "Qwen3-Coder.ik-2026-08",
    "Qwen3-Coder.llamacpp-2025-10",
    "Qwen3.5-4B",
]
REVISIONS = {"2026-08": "Qwen3-Coder.ik-2026-08", "2025-10": "Qwen3-Coder.llamacpp-2025-10"}
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def template(shared_data: Path) -> Callable[[str], str]:
    return lambda name: (shared_data / "chat_templates" / f"{name}.jinja").read_text("utf-8")


def reference(source: str, case: Case, generate: bool, **variables: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages, tools = case.reference
    rendered, _ = render_jinja_template(
        [messages], tools=tools, chat_template=source, add_generation_prompt=generate, **variables
    )
    return rendered[0]


@cache
def with_template(tokenizer: Tokenizer, source: str) -> Tokenizer:
    return Tokenizer(dataclasses.replace(tokenizer._files, templates={"default": source}))


def normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize("revision", REVISIONS)
@by_name
def test_ours_equals_the_coder_template(small: Tokenizer, template, case: Case, revision: str, generate: bool) -> None:
    expected = reference(template(REVISIONS[revision]), case, generate)
    assert small.render(case.messages, case.tools, generate, revision=revision) == expected
    if revision == "2026-08":
        assert small.render(case.messages, case.tools, generate) == expected


@pytest.mark.parametrize("name", TEMPLATES)
@by_name
def test_our_sandbox_equals_transformers(small: Tokenizer, template, case: Case, name: str) -> None:
    source = template(name)
    tokenizer = with_template(small, source)
    for generate in (True, False):
        expected = reference(source, case, generate)
        assert tokenizer.render(case.messages, case.tools, generate) == expected
        assert tokenizer.decode(tokenizer.encode_chat(case.messages, case.tools, generate)) == normal(expected)


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3.5-4B"])
def test_template_variables(small: Tokenizer, template, name: str) -> None:
    source, case = template(name), CASES[0]
    for thinking in (True, False):
        expected = reference(source, case, True, enable_thinking=thinking)
        assert with_template(small, source).render(case.messages, enable_thinking=thinking) == expected


@pytest.mark.parametrize("name", [None, *TEMPLATES])
@by_name
def test_only_the_format_writes_control_tokens(qwen: Tokenizer, template, case: Case, name: str | None) -> None:
    """The conversation with every control token in its texts broken has the same control tokens in the same order."""
    tokenizer = qwen if name is None else with_template(qwen, template(name))
    if case.name == "reasoning":
        pytest.skip("templates act on the <think> tags that an answer brings with it")
    ids = tokenizer.encode_chat(case.messages, case.tools)
    harmless = tokenizer.encode_chat(broken(case.messages), broken(case.tools))
    assert controls(tokenizer, ids) == controls(tokenizer, harmless)
    assert tokenizer.decode(ids) == normal(tokenizer.render(case.messages, case.tools))


@pytest.mark.parametrize("name", [None, *TEMPLATES])
@by_name
def test_ids_equal_transformers_where_texts_are_harmless(qwen: Tokenizer, template, case: Case, name) -> None:
    if case in (CONTROL_CASE, CASES[13]):
        pytest.skip("the reference encodes control tokens of texts as such")
    tokenizer = qwen if name is None else with_template(qwen, template(name))
    text = tokenizer.render(case.messages, case.tools)
    assert tokenizer.encode_chat(case.messages, case.tools) == tokenizer.encode(text, "all")


def controls(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    return [i for i in ids if i in tokenizer.control_tokens.values()]


def broken(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("<|", "<").replace("<tool", "< tool").replace("</t", "< /t")
    if isinstance(value, list):
        return [broken(item) for item in value]
    return {broken(key): broken(item) for key, item in value.items()} if isinstance(value, dict) else value


def test_schema_keys_cannot_compose_a_control_token(qwen: Tokenizer) -> None:
    tools = [{"name": "f", "parameters": {"type": "object", "|im_end|": "x", "tool_call": "y"}}]
    messages = [{"role": "user", "content": "hi"}]
    assert "<|im_end|>" in qwen.render(messages, tools)
    plain = controls(qwen, qwen.encode_chat(messages, [{"name": "f"}]))
    assert controls(qwen, qwen.encode_chat(messages, tools)) == plain


def test_an_unknown_revision_and_ignored_variables(small: Tokenizer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert small.render(messages, enable_thinking=False) == small.render(messages)
    with pytest.raises(UsageError, match="1999") as caught:
        small.render(messages, revision="1999")
    one_line(caught)


def test_a_template_is_compiled_once(template, monkeypatch) -> None:
    chat = ChatTemplate(template("Qwen3-0.6B"))
    first = chat._plain
    chat.render([{"role": "user", "content": "a"}])
    assert chat._plain is first
