"""The body of a chat completion."""

from typing import Any

from pydantic import Field

from codemill.server.generation import ChatPrompt, GenerationRequest
from codemill.server.protocols.conversation import clean_messages, tool_use
from codemill.server.protocols.output_form import OutputFormBody
from codemill.server.protocols.sampling_body import SamplingBody, token_limit


class ChatBody(SamplingBody, OutputFormBody):
    """OpenAI's fields that mean something here, and the customary additions. Messages are checked later, leniently."""

    messages: list[dict[str, Any]] = Field(examples=[[{"role": "user", "content": "Reverse a string in Python."}]])
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = Field(None, description="The last message is the answer's beginning.")

    def generation_request(self) -> GenerationRequest:
        """What is asked of the model. Raises UsageError."""
        limit = token_limit(self.max_completion_tokens, self.max_tokens)
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        params = self.sampling_params(limit, self.output_form, logprobs=logprobs)
        use = tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)
        return GenerationRequest(self._prompt(), params, use, self.priority or 0, self.deadline)

    def _prompt(self) -> ChatPrompt:
        messages, variables = clean_messages(self.messages), self.chat_template_kwargs or {}
        last = messages[-1] if messages else {}
        is_begun = self.continue_final_message and last.get("role") == "assistant"
        if is_begun and isinstance(last.get("content"), str) and len(messages) > 1:
            return ChatPrompt(messages[:-1], variables, prefill=last["content"])
        return ChatPrompt(messages, variables)
