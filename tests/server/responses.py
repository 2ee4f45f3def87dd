"""A client of responses that holds what it gets against the models of OpenAI's own package."""

import json
from typing import Any

import httpx
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from server.events import read_events

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOL = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.*/"},
}
AGENTS = {
    "type": "namespace",
    "name": "agents",
    "description": "Sub-agents.",
    "tools": [
        {
            "type": "function",
            "name": "spawn",
            "parameters": {"type": "object", "properties": {"task": {"type": "string"}}},
        }
    ],
}


def call_text(name: str, **arguments: str) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


def stream(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream; each fits its model, and their numbers count from 0."""
    found = []
    with client.stream("POST", "/v1/responses", json={"stream": True, **body}) as response:
        assert response.status_code == 200, response.read()
        for name, data in read_events(response):
            event = json.loads(data)
            assert event["type"] == name
            found.append(event)
            EVENT.validate_python(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The types of events, several in a row as one."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]


def deltas(events: list[dict[str, Any]], kind: str) -> str:
    return "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta")


def whole(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    Response.model_validate(answer.json())
    return answer.json()


def plain(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items without what is made up anew each time."""
    return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in output]
