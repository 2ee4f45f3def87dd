"""Options that several verbs share, and what becomes of them."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from codemill.engine_config import SpeculativeConfig
from codemill.errors import UsageError

if TYPE_CHECKING:
    from codemill import LLM
    from codemill.engine.outputs import RequestMetrics

MOST_THREADS = 64  # on small machines; on others four times the cores
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="SPEC", help="Directory, .gguf, hub id or random:PRESET; default: embedded."),
]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's), bfloat16, float16 or float32.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Quantization = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        help="Pack the weights while loading: int4, int8 (docs/quantize.md); none dequantises a GGUF file.",
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: one a physical core.")]
MaxModelLen = Annotated[int | None, typer.Option(help="Context in tokens, prompt and answer together.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy; default: the checkpoint's.")]
TopK = Annotated[int | None, typer.Option(help="Only the K likeliest tokens; 0 for all.")]
TopP = Annotated[float | None, typer.Option(help="Only the likeliest tokens that reach this probability.")]
MinP = Annotated[float | None, typer.Option(help="Only tokens this fraction as likely as the likeliest.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1 makes repeating less likely.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text.")]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens of an answer.")]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")]
Speculative = Annotated[
    str | None,
    typer.Option(metavar="HOW", help="Guess ahead: ngram, mtp, or draft=SPEC, a smaller model. Same output, sooner."),
]
PrefixCacheDir = Annotated[
    str | None,
    typer.Option(
        metavar="DIRECTORY", help="Keep computed prompts here, so that the next run need not compute them again."
    ),
]
KvCacheDtype = Annotated[
    str, typer.Option(help="auto (the model's) or int8: keys and values in half the memory, slightly rounded.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def load_llm(
    model: str | None,
    dtype: str,
    device: str,
    max_model_len: int | None,
    threads: int | None,
    speculative: str | None = None,
    prefix_cache_dir: str | None = None,
    quantization: str | None = None,
    kv_cache_dtype: str = "auto",
) -> "LLM":
    """The model that the options name."""
    from codemill import LLM

    set_threads(threads)
    return LLM(
        model,
        dtype=dtype,
        device=device,
        quantization=quantization,
        max_model_len=max_model_len,
        speculative=parse_speculative(speculative),
        prefix_cache_dir=prefix_cache_dir,
        kv_cache_dtype=kv_cache_dtype,
    )


def set_threads(threads: int | None) -> None:
    """Use so many CPU threads; None for the default. Raises UsageError for more than a machine could make use of."""
    import torch

    from codemill.kernels.thread_count import default_threads

    if threads is None:
        threads = min(default_threads().count, torch.get_num_threads())  # torch's may have been lowered already
    most = max(MOST_THREADS, 4 * (os.cpu_count() or 1))
    if threads > most:
        raise UsageError(f"--threads {threads}: this machine has {os.cpu_count()} cores; give at most {most}")
    torch.set_num_threads(threads)


def parse_speculative(how: str | None) -> SpeculativeConfig | None:
    """What --speculative means. Raises UsageError."""
    if how is None:
        return None
    method, is_model, spec = how.partition("=")
    if is_model and method == "draft":
        return SpeculativeConfig("draft", draft_model=spec or None)
    plain = {"ngram": SpeculativeConfig("ngram"), "mtp": SpeculativeConfig("mtp")}
    if how not in plain:
        raise UsageError(f"--speculative {how}: choose ngram, mtp or draft=SPEC")
    return plain[how]


def print_speed(metrics: "RequestMetrics | None") -> None:
    """Tokens per second, on standard error so that the answer can be piped."""
    if metrics is None:
        return
    seconds = max(metrics.first_token_seconds, 1e-9)
    print(
        f"[{metrics.num_prompt_tokens} prompt tokens at {metrics.num_prompt_tokens / seconds:.0f} tokens/s, "
        f"{metrics.num_output_tokens} generated at {metrics.tokens_per_second:.1f} tokens/s]",
        file=sys.stderr,
    )


def read_prompt(prompt: str) -> str:
    """The argument itself, or standard input for `-`. Raises UsageError if that is empty or no text."""
    text = _read_stdin() if prompt == "-" else prompt
    if not text:
        raise UsageError("the prompt is empty: give some text to continue")
    return text


def _read_stdin() -> str:
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("standard input is no UTF-8 text: a prompt must be text") from None
    if "\0" in text:
        raise UsageError("standard input is binary: a prompt must be text")
    return text
