"""What a request asks of sampling. Checked when it is made, so that nothing wrong reaches the model. No torch here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codemill.engine.structured_output import StructuredOutput
from codemill.errors import UsageError

MAX_LOGPROBS = 20
MAX_SAMPLES = 1024
MAX_BIAS = 100.0
MAX_PENALTY = 2.0


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one request are chosen. Raises UsageError naming the field and the value that is wrong.

    For `temperature`, `top_k`, `top_p`, `min_p` and `repetition_penalty` None means the checkpoint's own default
    (`generation_config.json`); a checkpoint that has none, or that says `do_sample: false`, decodes greedily.

    temperature: 0 (or under 1e-5) is greedy; above, logits are divided by it.
    top_k: only the k likeliest tokens; 0 or -1 for all. Exactly k, where logits tie.
    top_p: only the likeliest tokens that together reach this probability, in (0, 1].
    min_p: only tokens at least this fraction as likely as the likeliest, in [0, 1].
    repetition_penalty: above 1 makes every token of the prompt and of the output less likely (Keskar et al. 2019).
    presence_penalty, frequency_penalty: subtracted from the logits of the output's tokens, once and per occurrence.
    seed: the same seed gives the same output, whatever else runs; None takes the next seed of the `LLM`.
    max_tokens: None means the checkpoint's `max_new_tokens`, or else 1024; the context's end always bounds it.
    min_tokens: so many tokens before anything may stop the output.
    stop: strings that end the output; the text is cut before them.
    stop_token_ids: ids that end the output, besides the end-of-text ids of the checkpoint.
    ignore_eos: do not stop at those end-of-text ids.
    logprobs: the log-probability of each token and of this many alternatives (at most 20), under the model's own
        distribution, before penalties, bias, temperature and filters.
    prompt_logprobs: the same for the tokens of the prompt; such a prompt is computed whole, not taken from the cache.
    hidden_state: give back what the network makes of the prompt's last token, see `RequestOutput`.
    n: samples per prompt. best_of: so many are made, and the n of highest log-probability per token given back.
    structured_output: what form the output must have.
    speculative: False for no drafts where the engine makes them.
    skip_special_tokens: leave control tokens such as `<|im_start|>` out of the text.
    logit_bias: added to the logits of these token ids, each in [-100, 100].
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    skip_special_tokens: bool = True
    logit_bias: Mapping[int, float] | None = None
    prompt_logprobs: int | None = None
    best_of: int | None = None
    structured_output: StructuredOutput | None = None
    speculative: bool = True
    hidden_state: bool = False

    def __post_init__(self) -> None:
        self._check_distribution()
        self._check_lengths()
        self._check_stops()
        for name in ("ignore_eos", "skip_special_tokens", "speculative", "hidden_state"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, getattr(self, name), "True or False")
        _check_bias(self.logit_bias)
        if self.structured_output is not None and not isinstance(self.structured_output, StructuredOutput):
            raise _wrong("structured_output", self.structured_output, "a StructuredOutput")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, however it was given."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def _check_distribution(self) -> None:
        _check_number("temperature", self.temperature, 0.0, math.inf, "0 or more", optional=True)
        _check_integer("top_k", self.top_k, -1, None, "-1, 0 or a positive integer", optional=True)
        _check_number("top_p", self.top_p, 0.0, 1.0, "above 0 and at most 1", optional=True, open_low=True)
        _check_number("min_p", self.min_p, 0.0, 1.0, "from 0 to 1", optional=True)
        _check_number(
            "repetition_penalty", self.repetition_penalty, 0.0, math.inf, "above 0", optional=True, open_low=True
        )
        for name in ("presence_penalty", "frequency_penalty"):
            _check_number(name, getattr(self, name), -MAX_PENALTY, MAX_PENALTY, "from -2 to 2")
        _check_integer("seed", self.seed, None, None, "an integer", optional=True)

    def _check_lengths(self) -> None:
        _check_integer("max_tokens", self.max_tokens, 1, None, "at least 1", optional=True)
        _check_integer("min_tokens", self.min_tokens, 0, self.max_tokens, "from 0 to max_tokens")
        for name in ("logprobs", "prompt_logprobs"):
            _check_integer(name, getattr(self, name), 0, MAX_LOGPROBS, f"from 0 to {MAX_LOGPROBS}", optional=True)
        _check_integer("n", self.n, 1, MAX_SAMPLES, f"from 1 to {MAX_SAMPLES}")
        _check_integer("best_of", self.best_of, self.n, MAX_SAMPLES, f"from n to {MAX_SAMPLES}", optional=True)

    def _check_stops(self) -> None:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        if stops is not None and not _is_list_of(stops, str):
            raise _wrong("stop", self.stop, "text or a list of texts")
        if "" in (stops or ()):
            raise _wrong("stop", self.stop, "no empty text: it would stop everything")
        if not _is_list_of(self.stop_token_ids, int) or any(token_id < 0 for token_id in self.stop_token_ids):
            raise _wrong("stop_token_ids", self.stop_token_ids, "a list of token ids")


def _check_number(
    name: str, value: Any, low: float, high: float, allowed: str, *, optional: bool = False, open_low: bool = False
) -> None:
    """Raise UsageError unless `value` is a finite number in [low, high], or in (low, high] where `open_low`."""
    if optional and value is None:
        return
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high or (open_low and value == low):
        raise _wrong(name, value, allowed)


def _check_integer(
    name: str, value: Any, low: int | None, high: int | None, allowed: str, *, optional: bool = False
) -> None:
    """Raise UsageError unless `value` is an integer in [low, high]; None is no bound."""
    if optional and value is None:
        return
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or (low is not None and value < low) or (high is not None and value > high):
        raise _wrong(name, value, allowed)


def _check_bias(bias: Any) -> None:
    if bias is None:
        return
    if not isinstance(bias, Mapping) or not _is_list_of(list(bias), int):
        raise _wrong("logit_bias", bias, "a mapping of token ids to numbers")
    for token_id, value in bias.items():
        _check_number(f"logit_bias[{token_id}]", value, -MAX_BIAS, MAX_BIAS, "from -100 to 100")


def _is_list_of(values: Any, kind: type) -> bool:
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        return False
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def _wrong(name: str, value: Any, allowed: str) -> UsageError:
    shown = repr(value)
    return UsageError(f"{name} = {shown if len(shown) <= 60 else shown[:57] + '...'}: must be {allowed}")
