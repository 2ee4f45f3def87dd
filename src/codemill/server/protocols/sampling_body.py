"""The sampling fields that OpenAI's protocols share, with those that vLLM and llama.cpp added."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from codemill.engine.sampling_params import SamplingParams
from codemill.engine.structured_output import StructuredOutput
from codemill.errors import UsageError
from codemill.server.json_list import JsonList

LEAST_TOP_P = 1e-6
# Looked at for each token of an answer, in the thread that computes all answers.
MOST_STOPS = 64
MOST_STOP_CHARACTERS = 1000
MOST_BIASES = 4096


class StreamOptions(BaseModel):
    """What a stream says besides the answer."""

    include_usage: bool | None = None


class SamplingBody(BaseModel):
    """A body's sampling fields. Unknown fields are ignored, null is as good as absent."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = Field(None, description="Of the answer. Less than 0 is no limit but the context.")
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, Any] | None = Field(None, description="Numbers by token ids.")
    seed: int | None = None
    stop: str | JsonList[str] | None = None
    stop_token_ids: JsonList[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    priority: int | None = Field(None, description="Lower runs first.")
    deadline: float | None = Field(None, description="Seconds after which the answer ends with what it has.")
    return_progress: bool | None = Field(None, description="A stream tells how far the prompt is, about once a second.")

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling_params(
        self, max_tokens: int | None, structured_output: StructuredOutput | None = None, **values: Any
    ) -> SamplingParams:
        """The parameters; what the body leaves out keeps the checkpoint's default. Raises UsageError."""
        asked = {
            "temperature": self.temperature,
            "top_p": LEAST_TOP_P if self.top_p == 0 else self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": self.seed,
            "min_tokens": self.min_tokens,
            "stop": stop_texts(self.stop),
            "stop_token_ids": self.stop_token_ids,
            "ignore_eos": self.ignore_eos,
            "skip_special_tokens": self.skip_special_tokens,
            "logit_bias": logit_bias(self.logit_bias),
            "n": self.n,
            **values,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        return SamplingParams(max_tokens=max_tokens, structured_output=structured_output, **given)


def token_limit(*limits: int | None) -> int:
    """The first limit that is given; none, or one below 0, leaves the answer all the context."""
    found = next((limit for limit in limits if limit is not None), -1)
    return found if found >= 0 else ALL_TOKENS


ALL_TOKENS = 1 << 30


def logit_bias(bias: Mapping[str, Any] | None) -> dict[int, Any] | None:
    """JSON's keys are text; here they are token ids. Raises UsageError."""
    if not bias:
        return None
    if len(bias) > MOST_BIASES:
        raise UsageError(f"logit_bias: give at most {MOST_BIASES} tokens, not {len(bias)}")
    try:
        return {int(token_id): value for token_id, value in bias.items()}
    except ValueError as error:
        raise UsageError("logit_bias: its keys must be token ids") from error


def stop_texts(stop: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Empty texts, which some clients send for none, would stop everything. Raises UsageError for too many."""
    texts = [stop] if isinstance(stop, str) else stop or []
    if len(texts) > MOST_STOPS or any(len(text) > MOST_STOP_CHARACTERS for text in texts):
        raise UsageError(f"stop: give at most {MOST_STOPS} texts, of at most {MOST_STOP_CHARACTERS} characters each")
    return tuple(text for text in texts if text) or None
