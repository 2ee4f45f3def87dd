"""The tool of these tests."""

from typing import Any

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
DESCRIPTION = "The weather of the coming days"
ARGUMENTS = {"city": "Paris", "days": 2}
ANSWER = "It will be 18 degrees in Paris."


def get_weather(city: str, days: int) -> str:
    """What the tool says; the types show whether the arguments kept theirs."""
    return f"{city}: 18 degrees for {days + 0} days"


RESULT = get_weather(**ARGUMENTS)  # type: ignore[arg-type]
