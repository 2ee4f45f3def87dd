"""The body of Anthropic's messages, and of a count of their tokens."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from codemill.engine.sampling_params import SamplingParams
from codemill.engine.structured_output import StructuredOutput
from codemill.errors import UsageError
from codemill.server.generation import ChatPrompt, GenerationRequest, ToolUse
from codemill.server.json_list import JsonList
from codemill.server.protocols.messages_blocks import BlockReader
from codemill.server.protocols.messages_tools import DeclaredTools
from codemill.server.protocols.messages_turns import read_messages
from codemill.server.protocols.sampling_body import LEAST_TOP_P, stop_texts, token_limit


class MessagesBody(BaseModel):
    """Anthropic's fields that mean something here. Unknown fields are ignored, null is as good as absent."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: str | None = None
    messages: JsonList[dict[str, Any]] = Field(examples=[[{"role": "user", "content": "Reverse a string in Python."}]])
    system: str | list[Any] | None = None
    max_tokens: int | None = Field(None, description="Of the answer; the context that is left bounds it as well.")
    stream: bool | None = None
    stop_sequences: JsonList[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: JsonList[Any] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = Field(None, description="The older name of output_config.format.")

    def generation_request(self) -> GenerationRequest:
        """What is asked of the model. Raises UsageError."""
        tools = DeclaredTools(self.tools)
        reader = BlockReader(tools)
        messages = read_messages(reader, self.system, self.messages)
        params = self._sampling_params()
        use = tools.use(self.tool_choice, reader.loaded)
        return GenerationRequest(self._prompt(messages, params, use), params, use)

    def _sampling_params(self) -> SamplingParams:
        asked = {
            "temperature": self.temperature,
            "top_p": LEAST_TOP_P if self.top_p == 0 else self.top_p,
            "top_k": self.top_k,
            "stop": stop_texts(self.stop_sequences),
            "structured_output": self._form(),
        }
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return SamplingParams(max_tokens=token_limit(self.max_tokens), **given)

    def _form(self) -> StructuredOutput | None:
        form = self.output_format or (self.output_config or {}).get("format")
        if form is None:
            return None
        if not isinstance(form, Mapping) or form.get("type") != "json_schema" or "schema" not in form:
            raise UsageError("output_config.format: must be of type json_schema, with a schema")
        return StructuredOutput(json_schema=form["schema"])

    def _prompt(self, messages: list[dict[str, Any]], params: SamplingParams, use: ToolUse) -> ChatPrompt:
        last = messages[-1] if messages else {}
        if len(messages) > 1 and last["role"] == "assistant" and not last.get("tool_calls"):
            # What the answer begins with is text, so that it is too late for thinking.
            return ChatPrompt(messages[:-1], {"enable_thinking": False}, prefill=last["content"])
        return ChatPrompt(messages, self._variables(params, use))

    def _variables(self, params: SamplingParams, use: ToolUse) -> dict[str, Any]:
        """A client that does not ask for thinking expects text in the first block."""
        if self.thinking is None or self.thinking.get("type") == "disabled":
            return {"enable_thinking": False}
        is_formed = params.structured_output is not None or use.must_call
        return {} if is_formed else {"enable_thinking": True}
