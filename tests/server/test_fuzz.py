"""Requests that nobody foresaw: none may make the server fail, or hold up the others.

Cases come from the OpenAPI document (schemathesis), and from bodies that are right but for one or two places.
"""

import copy
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

pytest.importorskip("schemathesis")

import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
QUICK, FULL = 200, 2000
SLOWEST_SECONDS = 10.0  # of a request, whatever it asks

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": True,
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
CHAT = {
    "model": "scripted",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "The weather in Paris?"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "18 degrees"},
        {"role": "user", "content": "And tomorrow?"},
    ],
    "tools": [TOOL],
    "tool_choice": "auto",
    "max_tokens": 16,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 20,
    "seed": 1,
    "n": 1,
    "stop": ["\n\n"],
    "logit_bias": {"5": 1.0},
    "logprobs": True,
    "top_logprobs": 2,
    "stream_options": {"include_usage": True},
    "response_format": {"type": "text"},
    "chat_template_kwargs": {"enable_thinking": False},
    "deadline": 5.0,
    "priority": 0,
}
FORMED = {
    "messages": [{"role": "user", "content": "A person as JSON."}],
    "max_tokens": 32,
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "person",
            "schema": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "pattern": "^[a-z]+$", "minLength": 1},
                    "age": {"type": "integer", "minimum": 0, "maximum": 150},
                    "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
                    "more": {"$ref": "#/$defs/more"},
                },
                "required": ["name"],
                "$defs": {"more": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/more"}]}},
            },
        },
    },
}
GUIDED = {
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 8,
    "structured_outputs": {"regex": "[a-z]{1,5}"},
}
LARK = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "guided_grammar": 'start: "a" | "b" start'}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [CHAT, {**CHAT, "stream": True}, FORMED, GUIDED, LARK],
    "/v1/completions": [
        {"prompt": "def f(", "suffix": "return x", "max_tokens": 8, "logprobs": 2, "echo": True, "n": 2}
    ],
    "/v1/responses": [
        {
            "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
            "instructions": "Be brief.",
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
            "tool_choice": "auto",
            "text": {"format": {"type": "text"}},
            "reasoning": {"effort": "low"},
            "max_output_tokens": 16,
            "store": False,
            "stream": True,
        }
    ],
    "/v1/messages": [
        {
            "max_tokens": 16,
            "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "ok"}]},
            ],
            "tools": [{"name": "f", "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}],
            "tool_choice": {"type": "auto"},
            "stop_sequences": ["x"],
            "thinking": {"type": "disabled"},
        }
    ],
    "/v1/messages/count_tokens": [{"messages": [{"role": "user", "content": "hi"}], "tools": []}],
    "/infill": [
        {
            "input_prefix": "def f(x):\n",
            "input_suffix": "\n    return y",
            "prompt": "    y = ",
            "input_extra": [{"filename": "a.py", "text": "x = 1"}],
            "n_predict": 8,
            "samplers": ["top_k"],
            "t_max_predict_ms": 500,
        }
    ],
    "/tokenize": [{"content": "hi", "prompt": "hi", "add_special": False, "with_pieces": True}],
    "/detokenize": [{"tokens": [1, 2, 3]}],
}
NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**12, 10**400, 0.5, 1e308, -1e308),
    *("", " ", "\x00", "\ud800", "\udfff\ud800", "\ufeff", "<|im_start|>", "<tool_call>", "{{ 1/0 }}", "é" * 300),
    *([], {}, [[]], [None], [{}], {"": ""}, {"type": "x"}, [1, "a", None, {}], {"\x00": "\ud800"}),
    *("x" * 100_000, "(a|b|c)*" * 200, "(" * 500, "a{1,100000}", "(.*){1000}", "[", "\\p{L}{5000}", "start: start"),
    {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 10_000} for i in range(100)}},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    {"$ref": "#/$defs/none"},
    {"$ref": "https://example.com/schema"},
    {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "(x+x+)+y"}}},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"enum": []},
]


def nested(depth: int, kind: str = "list") -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"properties": {"a": value}, "type": "object"}
    return value


NASTY += [nested(50), nested(150), nested(50, "object")]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@st.composite
def spoiled_bodies(draw: st.DrawFn, path: str) -> dict[str, Any]:
    """A body of that endpoint with something else in one or two places."""
    body = copy.deepcopy(draw(st.sampled_from(BODIES[path])))
    for _ in range(draw(st.integers(1, 2))):
        paths = list(places(body))
        if not paths:
            break
        *outer, last = draw(st.sampled_from(paths))
        holder: Any = body
        for step in outer:
            holder = holder[step]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "double"]))
        if kind == "replace":
            holder[last] = copy.deepcopy(draw(st.sampled_from(NASTY) | json_values()))
        elif kind == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        else:
            del holder[last]
    return body


def json_values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    return st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


class Fuzzer:
    """Sends cases and keeps account of them."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.statuses: Counter[int] = Counter()
        self.slowest = 0.0

    def from_document(self, num_cases: int) -> None:
        """Cases that schemathesis makes of the OpenAPI document, as many for each operation."""
        schema = schemathesis.openapi.from_url(f"{self.client.base_url}/openapi.json".replace("//openapi", "/openapi"))
        operations = [result.ok() for result in schema.get_all_operations()]
        each = -(-num_cases // (len(MODES) * sum(bool(operation.body) for operation in operations)))
        for operation in operations:
            for mode in MODES if operation.body else MODES[:1]:  # nothing can be wrong with what has no body
                self._run(operation.as_strategy(generation_mode=mode), self._check_case, each)

    def from_bodies(self, num_cases: int) -> None:
        """Cases that are right but for one or two places."""
        paths = self.client.get("/openapi.json").json()["paths"]
        known = [path for path in BODIES if path in paths]
        for path in known:
            self._run(
                spoiled_bodies(path), lambda body, path=path: self._check_body(path, body), num_cases // len(known)
            )

    def _run(self, strategy: st.SearchStrategy[Any], check: Any, num_cases: int) -> None:
        @seed(0)
        @settings(
            max_examples=num_cases,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def run(case: Any) -> None:
            begin = time.monotonic()
            self.statuses[check(case)] += 1
            seconds = time.monotonic() - begin
            self.slowest = max(self.slowest, seconds)
            assert seconds < SLOWEST_SECONDS

        run()

    def _check_case(self, case: Any) -> int:
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        return int(response.status_code)

    def _check_body(self, path: str, body: Any) -> int:
        response = self.client.post(path, content=json.dumps(body))
        assert response.status_code < 500, f"{path} {json.dumps(body)[:2000]}: {response.text}"
        assert "a mistake" not in response.text, f"{path} {json.dumps(body)[:2000]}: {response.text[-500:]}"
        if response.status_code == 400:
            assert response.json()["error"]["message"]
        return response.status_code


def fuzz(serve: Any, num_cases: int) -> Counter[int]:
    client = serve(lambda prompt: '{"name": "ann", "age": 3} Some words.')
    client.timeout = 60
    fuzzer = Fuzzer(client)
    fuzzer.from_document(num_cases)
    from_document = sum(fuzzer.statuses.values())
    fuzzer.from_bodies(num_cases)
    print(f"{from_document} cases of the document, {fuzzer.statuses}, the slowest {fuzzer.slowest:.2f} s")
    assert from_document >= num_cases
    assert client.get("/openapi.json").status_code == 200
    return fuzzer.statuses


def test_no_request_makes_the_server_fail(serve):
    statuses = fuzz(serve, QUICK)
    assert statuses[200]
    assert statuses[400]


@pytest.mark.slow
def test_no_request_of_2000_makes_the_server_fail(serve):
    fuzz(serve, FULL)
