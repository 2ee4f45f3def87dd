"""How well a model predicts text, and how far other forms of it, such as quantised ones, depart from it.

Teacher forced: every token is predicted from the true tokens before it in its window. Shapes: T tokens of a window,
n = T - 1 predicted tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from codemill.models.decoder import CausalLM

ROWS = 256  # whose logits exist at a time: those of a window of 4,096 tokens would be 2.5 GB at Qwen's vocabulary


@dataclass(frozen=True)
class Departure:
    """How far a model is from the reference on the same tokens.

    loss_difference: of the mean losses, in nats, with its standard error; agreement: share of tokens for which both
    think the same next token the likeliest; divergence: mean KL(reference | model), in nats.
    """

    loss_difference: float
    standard_error: float
    agreement: float
    divergence: float

    @property
    def perplexity_ratio(self) -> float:
        """The model's perplexity over the reference's."""
        return math.exp(self.loss_difference)


@dataclass(frozen=True)
class Prediction:
    """How a model predicts `num_tokens` tokens: the mean of -log p(token), in nats, and its standard error.

    `departure` is None for the reference itself. Standard errors take the tokens of a window for dependent.
    """

    num_tokens: int
    loss: float
    standard_error: float
    departure: Departure | None

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    def to_json(self) -> dict[str, Any]:
        result = {"num_tokens": self.num_tokens, "loss": self.loss, "standard_error": self.standard_error}
        result["perplexity"] = self.perplexity
        if self.departure is None:
            return result
        return result | {"departure": asdict(self.departure) | {"perplexity_ratio": self.departure.perplexity_ratio}}


@torch.inference_mode()
def measure(
    models: Sequence[CausalLM], windows: Sequence[Sequence[int]], advance: Callable[[int], None] = lambda tokens: None
) -> list[Prediction]:
    """One prediction for each model; the first model is the reference that the others are compared with.

    advance: called with the number of tokens of each window that is done.
    """
    tallies = [_Tally() for _ in models]
    for window in windows:
        ids = torch.tensor([window], device=models[0].device)
        hidden = [model.hidden_states(ids[:, :-1])[0] for model in models]
        for rows in _slices(len(window) - 1):
            logits = (model.logits(x[rows]) for model, x in zip(models, hidden, strict=True))
            _add_rows(tallies, logits, ids[0, 1:][rows])
        for tally in tallies:
            tally.end_window()
        advance(len(window))
    return [tally.prediction(None if tally is tallies[0] else tallies[0]) for tally in tallies]


def _slices(length: int) -> Iterator[slice]:
    return (slice(start, min(start + ROWS, length)) for start in range(0, length, ROWS))


def _add_rows(tallies: Sequence["_Tally"], logits: Iterator[Tensor], targets: Tensor) -> None:
    """Score logits [n, V] of each model in turn; no more than two of them exist at a time."""
    reference: Tensor | None = None
    for tally, values in zip(tallies, logits, strict=True):
        log_probs = values.float().log_softmax(dim=-1)
        reference = log_probs if reference is None else reference
        tally.add(log_probs, reference, targets)


class _Tally:
    """Sums over the tokens of each window."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.losses: list[float] = []
        self._window = [0.0, 0.0]  # tokens, loss
        self._agreed = 0
        self._divergence = 0.0

    def add(self, log_probs: Tensor, reference: Tensor, targets: Tensor) -> None:
        self._window[0] += len(targets)
        self._window[1] -= log_probs.gather(1, targets[:, None]).double().sum().item()
        if reference is not log_probs:
            self._agreed += int((log_probs.argmax(dim=-1) == reference.argmax(dim=-1)).sum())
            self._divergence += (reference.exp() * (reference - log_probs)).nansum(dim=-1).double().sum().item()

    def end_window(self) -> None:
        self.counts.append(int(self._window[0]))
        self.losses.append(self._window[1])
        self._window = [0.0, 0.0]

    def prediction(self, reference: "_Tally | None") -> Prediction:
        num_tokens, departure = sum(self.counts), None
        if reference is not None:
            difference = [loss - other for loss, other in zip(self.losses, reference.losses, strict=True)]
            means = self._agreed / num_tokens, self._divergence / num_tokens
            departure = Departure(*mean_and_error(difference, self.counts), *means)
        return Prediction(num_tokens, *mean_and_error(self.losses, self.counts), departure)


def mean_and_error(sums: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """The mean over all tokens, and its standard error where tokens of one window depend on each other.

    sums and counts are those of each window; NaN for the error of a single window (the ratio estimator, Cochran 1977,
    section 6.4).
    """
    total, num_windows = sum(counts), len(counts)
    mean = math.fsum(sums) / total
    if num_windows == 1:
        return mean, math.nan
    squares = math.fsum((value - mean * count) ** 2 for value, count in zip(sums, counts, strict=True))
    return mean, math.sqrt(squares * num_windows / (num_windows - 1)) / total
