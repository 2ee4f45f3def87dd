"""Perplexity and departure, against plain formulas over all logits, and what quantising the embedded model changes."""

import math
import random
import statistics

import pytest
import torch
from torch import Tensor

from codemill.chat import Tokenizer
from codemill.data.texts import cut_windows
from codemill.eval.held_out_text import held_out_modules, task_files, training_modules
from codemill.eval.perplexity import mean_and_error, measure
from codemill.models import CausalLM, load_model
from models.reference import make_ours, make_reference

WINDOWS = [[(7 * i + start) % 97 for i in range(size)] for start, size in enumerate((300, 2, 17))]


@pytest.fixture(scope="module")
def pair() -> list[CausalLM]:
    return [make_ours(make_reference("qwen3", seed=seed)) for seed in (0, 1)]


def all_log_probs(seed: int) -> list[Tensor]:
    """Of `transformers` in fp64 [n, V], for each window."""
    reference = make_reference("qwen3", seed=seed).double()
    with torch.no_grad():
        return [reference(torch.tensor([window[:-1]])).logits[0].log_softmax(dim=-1) for window in WINDOWS]


def losses(log_probs: list[Tensor]) -> Tensor:
    picked = [rows[range(len(rows)), window[1:]] for rows, window in zip(log_probs, WINDOWS, strict=True)]
    return -torch.cat(picked)


def test_loss_is_that_of_transformers(pair: list[CausalLM]) -> None:
    """The first window is longer than the rows whose logits exist at a time."""
    expected = losses(all_log_probs(0))
    (ours,) = measure(pair[:1], WINDOWS)
    assert ours.num_tokens == len(expected) == 299 + 1 + 16
    assert ours.loss == pytest.approx(expected.mean().item(), rel=1e-5)
    assert ours.perplexity == pytest.approx(expected.mean().exp().item(), rel=1e-4)
    assert ours.departure is None


def test_departure_is_that_of_all_logits(pair: list[CausalLM]) -> None:
    first, second = all_log_probs(0), all_log_probs(1)
    divergence = torch.cat([(p.exp() * (p - q)).sum(dim=-1) for p, q in zip(first, second, strict=True)])
    agreed = torch.cat([p.argmax(dim=-1) == q.argmax(dim=-1) for p, q in zip(first, second, strict=True)])
    departure = measure(pair, WINDOWS)[1].departure
    assert departure is not None
    assert departure.loss_difference == pytest.approx((losses(second) - losses(first)).mean().item(), rel=1e-4)
    assert departure.divergence == pytest.approx(divergence.mean().item(), rel=1e-4)
    assert departure.agreement == pytest.approx(agreed.double().mean().item(), abs=1.5 / len(agreed))
    assert departure.perplexity_ratio == pytest.approx(math.exp(departure.loss_difference))


def test_a_model_does_not_depart_from_itself(pair: list[CausalLM]) -> None:
    departure = measure([pair[0], pair[0]], WINDOWS)[1].departure
    assert departure is not None
    assert (departure.loss_difference, departure.standard_error, departure.agreement) == (0, 0, 1)
    assert departure.divergence == 0


def test_tokens_that_cannot_come_count_nothing_in_the_divergence(pair: list[CausalLM]) -> None:
    """0 * log(0 / 0) is 0."""
    model = make_ours(make_reference("qwen3"))
    whole, model.logits = model.logits, lambda x: whole(x).index_fill(-1, torch.tensor([5]), -torch.inf)  # type: ignore
    windows = [[token for token in window if token != 5] for window in WINDOWS]
    departure = measure([model, model], windows)[1].departure
    assert departure is not None
    assert departure.divergence == 0


def test_progress_counts_all_tokens(pair: list[CausalLM]) -> None:
    done: list[int] = []
    measure(pair[:1], WINDOWS, done.append)
    assert done == [300, 2, 17]


def test_standard_error_of_equal_windows_is_that_of_their_means() -> None:
    sums = [random.Random(0).gauss(3, 1) * 10 for _ in range(40)]
    means = [value / 10 for value in sums]
    expected = statistics.mean(means), statistics.stdev(means) / math.sqrt(40)
    assert mean_and_error(sums, [10] * 40) == pytest.approx(expected)


def test_standard_error_of_unequal_windows_is_that_of_many_draws() -> None:
    rng = random.Random(1)

    def draw() -> tuple[list[float], list[int]]:
        counts = [rng.choice((10, 100)) for _ in range(60)]
        return [rng.gauss(2, 0.5) * count for count in counts], counts

    draws = [mean_and_error(*draw()) for _ in range(400)]
    spread = statistics.stdev(mean for mean, _ in draws)
    assert statistics.mean(error for _, error in draws) == pytest.approx(spread, rel=0.15)


def test_one_window_has_no_standard_error() -> None:
    mean, error = mean_and_error([6.0], [3])
    assert mean == 2
    assert math.isnan(error)


@pytest.mark.parametrize(("quantization", "least"), [("int8", 0.95), ("int4", 0.85), ("int4:g64:asym:head8", 0.9)])
def test_the_embedded_model_thinks_of_the_same_next_token_when_quantised(quantization: str, least: float) -> None:
    encode = Tokenizer.load(None).encode
    windows = cut_windows([encode(text) for text in (*held_out_modules()[1:3], *task_files(24))], 512)[:12]
    plain, quantised = measure([load_model(None), load_model(None, quantization=quantization)], windows)
    assert plain.perplexity < 40
    assert quantised.departure is not None
    assert quantised.departure.agreement >= least
    assert quantised.departure.divergence < 0.05


def test_text_is_held_out() -> None:
    held_out, seen = set(held_out_modules()), set(training_modules())
    assert len(held_out) > 5
    assert not held_out & seen
    functions = [
        {function.partition('"""')[2] for text in task_files(36, held_out=flag) for function in text.split("\n\n\n")}
        for flag in (True, False)
    ]
    assert len(task_files(30)) == 3
    assert not functions[0] & functions[1]
