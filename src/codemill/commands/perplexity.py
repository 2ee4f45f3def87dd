"""`codemill eval perplexity`: how well a model predicts text, and what quantising it changes."""

from pathlib import Path
from typing import TYPE_CHECKING

from codemill.commands import options, print_json
from codemill.errors import UsageError

if TYPE_CHECKING:
    from codemill.eval.perplexity import Prediction
    from codemill.eval.request import LocalModel
    from codemill.models import CausalLM

WINDOW = 2048  # tokens that a prediction can look back on at most


def run_perplexity(
    wanted: "LocalModel", reference: str | None, data: Path | None, limit: int | None, as_json: bool
) -> None:
    """Measure and print. Raises UsageError and CodemillError as loading a model and reading text do."""
    from codemill.chat import Tokenizer
    from codemill.data.texts import cut_windows, read_texts
    from codemill.eval.held_out_text import held_out_modules, task_files
    from codemill.eval.perplexity import measure

    options.set_threads(wanted.threads)
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: give at least 1 window")
    texts = held_out_modules() + task_files() if data is None else read_texts(data.expanduser())
    models = _load(wanted, reference)
    size = _window_size(models[0], wanted.max_model_len)
    tokenizer = Tokenizer.load(wanted.spec)
    windows = cut_windows([tokenizer.encode(text) for text in texts], size)[:limit]
    if not windows:
        raise UsageError(f"{data}: a single token cannot be predicted; give more text")
    *_, prediction = measure(models, windows)
    if as_json:
        print_json({"model": wanted.name, "quantization": wanted.quantization} | prediction.to_json())
    else:
        print(_as_text(prediction))


def _load(wanted: "LocalModel", reference: str | None) -> "list[CausalLM]":
    """The reference, if there is one, and the model."""
    from codemill.models import load_model

    models = []
    if reference is not None or wanted.quantization is not None:
        models.append(load_model(reference or wanted.spec, wanted.dtype, wanted.device))
    models.append(load_model(wanted.spec, wanted.dtype, wanted.device, quantization=wanted.quantization))
    sizes = [model.config.vocab_size for model in models]
    if len(set(sizes)) > 1:
        raise UsageError(f"--reference {reference}: its vocabulary has {sizes[0]} tokens, the model's {sizes[1]}")
    return models


def _window_size(model: "CausalLM", wanted: int | None) -> int:
    longest = model.config.max_position_embeddings
    if wanted is not None and not 2 <= wanted <= longest:
        raise UsageError(f"--max-model-len {wanted}: give 2 to {longest}, the model's context")
    return wanted or min(longest, WINDOW)


def _as_text(prediction: "Prediction") -> str:
    lines = [
        f"perplexity {prediction.perplexity:.4f} on {prediction.num_tokens:,} tokens "
        f"(mean loss {prediction.loss:.4f}, standard error {prediction.standard_error:.4f})"
    ]
    departure = prediction.departure
    if departure is not None:
        lines += [
            f"  over the reference's  {departure.perplexity_ratio:.4f}  "
            f"(losses differ by {departure.loss_difference:+.5f}, standard error {departure.standard_error:.5f})",
            f"  same next token       {100 * departure.agreement:.2f} %",
            f"  KL divergence         {departure.divergence:.5f} nats",
        ]
    return "\n".join(lines)
