"""The body of a response."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from codemill.engine.structured_output import StructuredOutput
from codemill.errors import UsageError
from codemill.server.errors import ApiError
from codemill.server.generation import ChatPrompt, GenerationRequest, ToolUse
from codemill.server.protocols.conversation import tool_use
from codemill.server.protocols.output_form import response_form
from codemill.server.protocols.responses_input import messages_of
from codemill.server.protocols.responses_tools import OfferedTools, offer
from codemill.server.protocols.sampling_body import SamplingBody, token_limit

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
NOT_STORED = {
    "previous_response_id": "send the conversation as `input`",
    "conversation": "send the conversation as `input`",
    "prompt": "send its text as `instructions`",
    "background": "use `stream`",
}


class ResponseBody(SamplingBody):
    """OpenAI's fields that mean something here; those of sampling are customary. Items are read later, leniently."""

    input: str | list[Any] | None = Field(None, examples=["Reverse a string in Python."])
    instructions: str | list[Any] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    include: list[Any] | None = None
    text: dict[str, Any] | None = Field(None, description="`format` is the form of the text.")
    reasoning: dict[str, Any] | None = Field(None, description="`effort`: none and minimal turn it off.")
    chat_template_kwargs: dict[str, Any] | None = None
    truncation: str | None = Field(None, description="Whatever it says: nothing is ever left out of the input.")
    store: bool | None = Field(None, description="Whatever it says: nothing is stored.")
    background: Any = None
    previous_response_id: Any = Field(None, description="Must be null: nothing is stored.")
    conversation: Any = Field(None, description="Must be null: nothing is stored.")
    prompt: Any = Field(None, description="Must be null: nothing is stored.")
    metadata: dict[str, Any] | None = None
    max_tool_calls: Any = None
    prompt_cache_key: Any = None
    safety_identifier: Any = None
    user: Any = None

    @property
    def encodes_reasoning(self) -> bool:
        """Whether reasoning is also asked for in `encrypted_content`."""
        return ENCRYPTED in (self.include or ())

    def offered_tools(self) -> OfferedTools:
        """The tools that the model gets. Raises UsageError."""
        return offer(self.tools)

    def generation_request(self, tools: OfferedTools) -> GenerationRequest:
        """What is asked of the model. Raises UsageError, and ApiError for what would have to be stored."""
        self._refuse_stored()
        limit = token_limit(self.max_output_tokens, self.max_tokens)
        params = self.sampling_params(limit, self._output_form, logprobs=self._num_logprobs, n=1)
        prompt = ChatPrompt(messages_of(self.instructions, self.input), self._variables)
        return GenerationRequest(prompt, params, self._tool_use(tools), self.priority or 0, self.deadline)

    def echo(self, tools: OfferedTools) -> dict[str, Any]:
        """What the response says of its request: what holds, not what was asked for without effect."""
        text, reasoning = self.text or {}, self.reasoning or {}
        return {
            "instructions": self.instructions,
            "tools": tools.echo,
            "tool_choice": self._shown_choice,
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_logprobs": self.top_logprobs or 0,
            "text": {**text, "format": text.get("format") or {"type": "text"}},
            "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
            "metadata": self.metadata or {},
            "prompt_cache_key": self.prompt_cache_key,
            "safety_identifier": self.safety_identifier,
            "user": self.user,
            "truncation": "disabled",
            "store": False,
            "background": False,
            "previous_response_id": None,
            "service_tier": "default",
        }

    @property
    def _shown_choice(self) -> Any:
        choice = self.tool_choice
        if isinstance(choice, dict) and isinstance(choice.get("function"), dict):  # as a chat completion has it
            return {"type": "function", "name": choice["function"].get("name")}
        return "auto" if choice is None else choice

    @property
    def _output_form(self) -> StructuredOutput | None:
        form = (self.text or {}).get("format")
        if not isinstance(form, Mapping | None):
            raise UsageError(f"text.format: must be an object with a type, found {type(form).__name__}")
        return response_form(form)

    @property
    def _num_logprobs(self) -> int | None:
        wanted = LOGPROBS in (self.include or ()) or bool(self.top_logprobs)
        return (self.top_logprobs or 0) if wanted else None

    @property
    def _variables(self) -> dict[str, Any]:
        effort = (self.reasoning or {}).get("effort")
        thinking = {"enable_thinking": False} if effort in ("none", "minimal") else {}
        return {**thinking, **(self.chat_template_kwargs or {})}

    def _tool_use(self, tools: OfferedTools) -> ToolUse:
        return tool_use(tools.functions, tools.choice(self.tool_choice), self.parallel_tool_calls)

    def _refuse_stored(self) -> None:
        for name, instead in NOT_STORED.items():
            if getattr(self, name):
                raise ApiError(400, f"{name}: this server stores nothing; {instead}", "unsupported", name)
