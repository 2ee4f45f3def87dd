"""Whether each tool result in a conversation answers a call: one that does not would teach the model to expect it."""

from collections.abc import Mapping, Sequence
from typing import Any

from codemill.errors import UsageError


def check_tool_results(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises UsageError naming the first `tool` message that answers no call of the assistant message before it."""
    open_calls: list[Any] = []
    for i, message in enumerate(messages):
        if message["role"] == "tool":
            _answer(open_calls, message.get("tool_call_id"), f"message {i}")
        else:
            open_calls = [call.get("id") for call in message.get("tool_calls") or ()]


def _answer(open_calls: list[Any], call_id: Any, where: str) -> None:
    """Take the call that is answered off `open_calls`: that of this id, or the first where ids are not used."""
    if not open_calls:
        raise UsageError(f"{where}: a tool result without a call before it")
    named = call_id is not None and any(known is not None for known in open_calls)
    if named and call_id not in open_calls:
        raise UsageError(f"{where}: a tool result for the call {call_id!r}, which was not made")
    open_calls.pop(open_calls.index(call_id) if named else 0)
