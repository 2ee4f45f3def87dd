"""What the model reads of Anthropic's messages."""

import copy
import json
import logging
from typing import Any

import pytest

pytest.importorskip("fastapi")

from codemill.chat.tokenizer import Tokenizer
from codemill.errors import UsageError
from codemill.server.generation import GenerationRequest
from codemill.server.protocols.messages_body import MessagesBody

USER = {"role": "user", "content": "hi"}
MARK = {"cache_control": {"type": "ephemeral"}}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def tool(name: str, **more: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"path": {"type": "string"}}}
    return {"name": name, "description": f"What {name} does", "input_schema": schema, **more}


def request_of(*messages: Any, **values: Any) -> GenerationRequest:
    return MessagesBody(messages=list(messages), **values).generation_request()


def read(*messages: Any, **values: Any) -> list[Any]:
    """The messages that the chat template gets."""
    return list(request_of(*messages, **values).prompt.messages)


def prompt_of(body: dict[str, Any]) -> str:
    request = MessagesBody(**body).generation_request()
    return Tokenizer.load().render(request.prompt.messages, request.tool_use.tools, **request.prompt.variables)


def session() -> tuple[dict[str, Any], dict[str, Any]]:
    """Two requests of one conversation, built as Claude Code 2.1 builds them: what moves there moves here."""
    hidden = tool("DeferredToolPlaceholder", defer_loading=True)
    first = {
        "model": "m",
        "system": [
            text("x-anthropic-billing-header: cc_version=2.1.332.8ff; cc_entrypoint=sdk-cli;"),
            text("You are an agent.", **MARK),
            text("\nBe careful.", **MARK),
        ],
        "messages": [
            {"role": "user", "content": [text("<system-reminder>\nclean\n</system-reminder>"), text("Fetch it")]},
            {"role": "system", "content": [text("# Environment\nLinux", **MARK)]},
        ],
        "tools": [tool("Bash"), tool("ToolSearch"), hidden, tool("Write")],
        "max_tokens": 32000,
        "metadata": {"user_id": "one"},
        "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "stream": True,
    }
    second = copy.deepcopy(first)
    call = {"type": "tool_use", "id": "toolu_1", "name": "ToolSearch", "input": {"path": "select:WebFetch"}}
    found = [{"type": "tool_reference", "tool_name": "WebFetch"}]
    second["messages"][1]["content"] = "# Environment\nLinux"
    second["messages"] += [
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm", "signature": "s"}, call]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": found, **MARK}]},
    ]
    second["tools"].insert(2, tool("WebFetch", defer_loading=True))
    return first, second


def test_the_prompt_of_a_turn_begins_with_that_of_the_turn_before():
    first, second = (prompt_of(body) for body in session())
    assert second.startswith(first)
    assert "WebFetch" not in first
    assert '<function>{"description": "What WebFetch does", "name": "WebFetch", "parameters"' in second[len(first) :]


def test_two_conversations_begin_alike():
    first, other = session()[0], session()[0]
    other["system"][0]["text"] = "x-anthropic-billing-header: cc_version=2.1.332.000; cc_entrypoint=cli;"
    other["messages"][0]["content"][1]["text"] = "Something else"
    begin = prompt_of(first).index("Fetch it")
    assert prompt_of(first)[:begin] == prompt_of(other)[:begin]


def test_only_the_billing_line_is_left_out():
    line = "x-anthropic-billing-header: cc_version=1;"
    assert read(USER, system=f"{line}\nBe brief.")[0] == {"role": "system", "content": "Be brief."}
    assert read(USER, system=[text(line)]) == [USER]
    assert read(USER, system=f"Mind the {line}")[0]["content"] == f"Mind the {line}"


def test_what_was_loaded_may_be_called_and_nothing_else_that_is_deferred():
    use = MessagesBody(**session()[1]).generation_request().tool_use
    assert [each["function"]["name"] for each in use.tools] == ["Bash", "ToolSearch", "Write"]
    assert [each["function"]["name"] for each in use.loaded] == ["WebFetch"]


def test_tools_that_a_system_message_adds_or_takes_away():
    def change(kind: str, name: str) -> dict[str, Any]:
        return {"type": kind, "tool": {"type": "tool_reference", "name": name}}

    blocks = [change("tool_addition", "Fetch"), change("tool_addition", "Bash"), change("tool_removal", "Bash")]
    request = request_of(
        USER, {"role": "system", "content": blocks}, tools=[tool("Bash"), tool("Fetch", defer_loading=True)]
    )
    content = request.prompt.messages[1]["content"]
    assert [each["function"]["name"] for each in request.tool_use.loaded] == ["Fetch"]
    assert content.startswith("<functions>\n<function>{")
    assert content.endswith("The tool Bash is now available.\nThe tool Bash is no longer available.")


def test_a_tool_that_a_message_brings_along():
    added = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": tool("Fetch")}}
    request = request_of(USER, {"role": "system", "content": [added]}, tools=[tool("Bash")])
    assert '"name": "Fetch", "parameters": {' in request.prompt.messages[1]["content"]
    assert [each["function"]["name"] for each in request.tool_use.tools] == ["Bash"]
    assert [each["function"]["name"] for each in request.tool_use.loaded] == ["Fetch"]
    added["tool"]["definition"] = {"type": "custom"}
    with pytest.raises(UsageError, match=r"^messages\.1\.content\.0\.tool\.definition: expected a tool"):
        request_of(USER, {"role": "system", "content": [added]})


def test_text_and_blocks_of_text_are_the_same():
    assert read({"role": "user", "content": [text("hi", **MARK)]}, system=[text("Be.", **MARK)]) == read(
        USER, system="Be."
    )


def test_results_keep_their_place_among_texts():
    def result(number: int, **values: Any) -> dict[str, Any]:
        return {"type": "tool_result", "tool_use_id": f"toolu_{number}", **values}

    content = [
        text("before"),
        result(1, content="one"),
        result(2, content=[text("two"), text("lines")], is_error=False),
        text("after"),
        text("all"),
        result(3),
    ]
    found = read(USER, {"role": "user", "content": content})
    assert [(each["role"], each["content"]) for each in found] == [
        ("user", "hi"),
        ("user", "before"),
        ("tool", "one"),
        ("tool", "two\nlines"),
        ("user", "after\nall"),
        ("tool", ""),
    ]
    assert [each["tool_call_id"] for each in found if each["role"] == "tool"] == ["toolu_1", "toolu_2", "toolu_3"]


@pytest.mark.parametrize(
    ("said", "read_as"),
    [
        ("no such file", "Error: no such file"),
        ("", "Error: "),
        ("Error: no such file", "Error: no such file"),
        ("<tool_use_error>no</tool_use_error>", "<tool_use_error>no</tool_use_error>"),
    ],
)
def test_a_result_that_is_an_error_says_so(said, read_as):
    block = {"type": "tool_result", "tool_use_id": "t", "content": said, "is_error": True}
    assert read({"role": "user", "content": [block]})[0]["content"] == read_as


def test_an_old_answer():
    blocks = [
        {"type": "thinking", "thinking": "Hm", "signature": "whatever"},
        {"type": "redacted_thinking", "data": "secret"},
        text("I look."),
        {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"path": "a", "n": 2}},
        {"type": "tool_use", "id": "toolu_2", "name": "Read", "input": None},
    ]
    (_, answer, _) = read(USER, {"role": "assistant", "content": blocks}, USER)
    assert (answer["content"], answer["reasoning_content"]) == ("I look.", "Hm")
    assert [call["function"] for call in answer["tool_calls"]] == [
        {"name": "Read", "arguments": {"path": "a", "n": 2}},
        {"name": "Read", "arguments": {}},
    ]


def test_blocks_that_are_not_known_are_left_out_with_a_line_in_the_log(caplog):
    blocks = [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}, text("Found.")]
    with caplog.at_level(logging.INFO):
        found = read(USER, {"role": "assistant", "content": blocks}, USER, tools=[{"type": "web_search_20250305"}])
    assert found[1] == {"role": "assistant", "content": "Found."}
    assert "'server_tool_use' is not known" in caplog.text
    assert "'web_search_20250305' is not known" in caplog.text


def test_documents_of_plain_text_are_read():
    plain = {"type": "document", "title": "a.txt", "source": {"type": "text", "media_type": "text/plain", "data": "A"}}
    parts = {"type": "document", "source": {"type": "content", "content": [text("B"), text("C")]}}
    found = {"type": "search_result", "title": "D", "source": "http://d", "content": [text("E")]}
    (message,) = read({"role": "user", "content": [plain, parts, found]})
    assert message["content"] == "a.txt\nA\nB\nC\nD\nhttp://d\nE"


@pytest.mark.parametrize("kind", ["image", "document"])
def test_what_cannot_be_read_is_an_error_but_not_in_a_tool_result(kind):
    block = {"type": kind, "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}}
    with pytest.raises(UsageError, match=rf"^messages\.0\.content\.1: .* no block of type {kind}$"):
        read({"role": "user", "content": [text("look"), block]})
    result = {"type": "tool_result", "tool_use_id": "t", "content": [text("The file:"), block]}
    (message,) = read({"role": "user", "content": [result]})
    assert message["content"] == f"The file:\n[{kind}: left out, this model reads only text]"


def test_a_last_message_of_the_assistant_begins_the_answer():
    request = request_of(
        USER, {"role": "assistant", "content": [text("The answer is (")]}, thinking={"type": "adaptive"}
    )
    assert request.prompt.prefill == "The answer is ("
    assert list(request.prompt.messages) == [USER]
    assert request.prompt.variables == {"enable_thinking": False}


def test_a_last_message_that_calls_a_tool_begins_nothing():
    call = {"type": "tool_use", "id": "t", "name": "Read", "input": {}}
    request = request_of(USER, {"role": "assistant", "content": [call]})
    assert request.prompt.prefill == ""
    assert len(request.prompt.messages) == 2


@pytest.mark.parametrize(
    ("values", "variables"),
    [
        ({}, {"enable_thinking": False}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"enable_thinking": True}),
        ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True}),
        # A form leaves no room for thinking: how a template is told so is not this protocol's concern.
        ({"thinking": {"type": "adaptive"}, "tools": [tool("Read")], "tool_choice": {"type": "any"}}, {}),
    ],
)
def test_thinking(values, variables):
    assert request_of(USER, **values).prompt.variables == variables


def test_what_a_client_may_say_besides_changes_nothing():
    more = {"cache_control": None, "eager_input_streaming": True, "input_examples": [{"path": "a"}], "type": "custom"}
    plain, decorated = (request_of(USER, tools=[each]).tool_use for each in (tool("Read"), tool("Read", **more)))
    assert plain == decorated


def test_every_value_may_be_null():
    names = [name for name in MessagesBody.model_fields if name != "messages"]
    assert request_of(USER, **dict.fromkeys(names)) == request_of(USER)


def test_sampling():
    params = request_of(USER, temperature=0.5, top_p=0, top_k=20, stop_sequences=["a", ""], max_tokens=7).params
    assert (params.temperature, params.top_k, params.max_tokens, params.stop_strings) == (0.5, 20, 7, ("a",))
    assert 0 < params.top_p < 1e-3


def test_tool_calls_of_a_schema_that_is_strict():
    use = request_of(USER, tools=[tool("Read", strict=True)]).tool_use
    assert use.strict
    assert "strict" not in json.dumps(use.tools)
