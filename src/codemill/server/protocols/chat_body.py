"""The body of a chat completion."""

from typing import Any

from pydantic import Field

from codemill.chat.messages import normalize_messages
from codemill.server.generation import ChatPrompt, GenerationRequest, ToolUse
from codemill.server.json_list import JsonList
from codemill.server.protocols.conversation import clean_messages, tool_use
from codemill.server.protocols.output_form import OutputFormBody
from codemill.server.protocols.sampling_body import SamplingBody, token_limit
from codemill.server.shape import Shape

NO_EFFORT = ("none", "minimal")


class ChatBody(SamplingBody, OutputFormBody):
    """OpenAI's fields that mean something here, and the customary additions. Messages are checked later, leniently."""

    messages: JsonList[dict[str, Any]] = Field(examples=[[{"role": "user", "content": "Reverse a string in Python."}]])
    tools: JsonList[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = Field(None, description="The last message is the answer's beginning.")
    echo: bool | None = Field(None, description="The answer's beginning is given back with it.")
    functions: JsonList[dict[str, Any]] | None = Field(None, description="As OpenAI had tools in 2023.")
    function_call: str | dict[str, Any] | None = None
    reasoning_effort: str | None = Field(
        None, description="none and minimal switch reasoning off; all else is ignored."
    )
    enable_thinking: bool | None = None
    thinking: bool | dict[str, Any] | None = None

    def generation_request(self) -> GenerationRequest:
        """What is asked of the model. Raises UsageError."""
        limit = token_limit(self.max_completion_tokens, self.max_tokens)
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        params = self.sampling_params(limit, self.output_form, logprobs=logprobs)
        shape = Shape(echo=bool(self.echo), includes_stop=bool(self.include_stop_str_in_output))
        return GenerationRequest(
            self._prompt(), params, self._tool_use(), self.priority or 0, self.deadline, shape=shape
        )

    def _tool_use(self) -> ToolUse:
        if self.tools is None and self.functions is not None:
            return tool_use(self.functions, self.function_call, parallel=False)
        return tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)

    @property
    def _thinks(self) -> bool | None:
        """Whether the model shall reason; None where the body does not say."""
        if self.enable_thinking is not None:
            return self.enable_thinking
        if isinstance(self.thinking, bool):
            return self.thinking
        kind = (self.thinking or {}).get("type")
        if kind in ("enabled", "disabled"):
            return bool(kind == "enabled")
        return False if self.reasoning_effort in NO_EFFORT else None

    def _prompt(self) -> ChatPrompt:
        thinks = {} if self._thinks is None else {"enable_thinking": self._thinks}
        messages, variables = clean_messages(self.messages), {**thinks, **(self.chat_template_kwargs or {})}
        last = messages[-1] if messages else {}
        is_begun = self.continue_final_message and last.get("role") == "assistant"
        if is_begun and len(messages) > 1:
            return ChatPrompt(messages[:-1], variables, prefill=normalize_messages([last])[0]["content"])
        return ChatPrompt(messages, variables)
