"""The body of a completion."""

from collections.abc import Iterator
from dataclasses import replace

from pydantic import Field

from codemill.engine.sampling_params import SamplingParams
from codemill.errors import UsageError
from codemill.server.generation import FimPrompt, GenerationRequest, TextPrompt, TokenPrompt
from codemill.server.json_list import JsonList
from codemill.server.protocols.output_form import OutputFormBody
from codemill.server.protocols.sampling_body import SamplingBody, token_limit
from codemill.server.shape import Shape

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MOST_SAMPLES = 1024


class CompletionsBody(SamplingBody, OutputFormBody):
    """OpenAI's fields that mean something here, and the customary additions.

    Control tokens in a prompt are meant as such: editors write whole fill-in-the-middle prompts with them.
    """

    prompt: str | JsonList[int] | JsonList[str] | JsonList[JsonList[int]] = Field(
        "<|endoftext|>", examples=["def fibonacci(n):"], description="Text, token ids, or a list of either."
    )
    suffix: str | None = Field(None, description="What follows the hole: with it the model fills in the middle.")
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    n_predict: int | None = None

    def generation_requests(self) -> list[GenerationRequest]:
        """What is asked of the model, one request for each prompt. Raises UsageError."""
        limit = token_limit(self.max_tokens, self.n_predict, DEFAULT_MAX_TOKENS)
        params = self._params(limit)
        shape = Shape(bool(self.echo), limit == 0, bool(self.include_stop_str_in_output))
        return [
            GenerationRequest(prompt, params, priority=self.priority or 0, deadline=self.deadline, shape=shape)
            for prompt in self._prompts()
        ]

    def _params(self, limit: int) -> SamplingParams:
        has_best_of = self.best_of is not None and self.best_of != (self.n or 1)
        params = self.sampling_params(
            max(1, limit), self.output_form, logprobs=self.logprobs, best_of=self.best_of if has_best_of else None
        )
        if self.echo and not self.suffix and self.logprobs is not None:
            return replace(params, prompt_logprobs=self.logprobs)
        return params

    def _prompts(self) -> Iterator[TextPrompt | TokenPrompt | FimPrompt]:
        prompts = [self.prompt] if self._is_one else list(self.prompt)
        if len(prompts) * (self.n or 1) > MOST_SAMPLES:
            raise UsageError(
                f"prompt: {len(prompts)} prompts with n = {self.n or 1} are more than {MOST_SAMPLES} samples; "
                "send several requests"
            )
        for prompt in prompts:
            if isinstance(prompt, str):
                is_hole = bool(self.suffix)
                yield FimPrompt(prompt, self.suffix or "") if is_hole else TextPrompt(prompt, has_control_tokens=True)
            elif self.suffix:
                raise UsageError("suffix: needs a prompt that is text, not token ids")
            else:
                yield TokenPrompt(tuple(prompt))  # type: ignore[arg-type]

    @property
    def _is_one(self) -> bool:
        prompt = self.prompt
        return isinstance(prompt, str) or not prompt or isinstance(prompt[0], int)
