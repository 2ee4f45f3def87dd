"""`codemill complete`: fill in the middle at a place in a file."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codemill.commands import add_verb, options, print_json
from codemill.errors import UsageError

if TYPE_CHECKING:
    from codemill import SamplingParams
    from codemill.chat.completion import CompletionPrompt, Cursor
    from codemill.engine.outputs import CompletionOutput

EXAMPLES = """
codemill complete examples/shopping.py:5
codemill complete src/app.py:40:9 --max-tokens 100
codemill complete src/app.py:40 --repo . --model Qwen/Qwen3-Coder-30B-A3B-Instruct
codemill complete notes.py --json
"""


def register(app: typer.Typer) -> None:
    add_verb(app, complete, EXAMPLES)


def complete(
    place: Annotated[
        str, typer.Argument(metavar="FILE[:LINE[:COL]]", help="Where to write; by default the end of LINE or FILE.")
    ],
    model: options.Model = None,
    repo: Annotated[
        Path | None, typer.Option(help="Add related files of this repository, as many as the context holds.")
    ] = None,
    window: Annotated[
        bool, typer.Option("--window", help="Of a file that does not fit the context, use what surrounds the cursor.")
    ] = False,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    quantization: options.Quantization = None,
    max_model_len: options.MaxModelLen = None,
    threads: options.Threads = None,
    speculative: options.Speculative = None,
    prefix_cache_dir: options.PrefixCacheDir = None,
    kv_cache_dtype: options.KvCacheDtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Complete a file at the cursor, from what stands before and after it."""
    from codemill import SamplingParams
    from codemill.chat.completion import completion_prompt

    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop,
    )
    cursor = read_cursor(place)
    llm = options.load_llm(
        model, dtype, device, max_model_len, threads, speculative, prefix_cache_dir, quantization, kv_cache_dtype
    )
    max_tokens = answer_length(params, llm.max_model_len)
    prompt = completion_prompt(llm.tokenizer, cursor, llm.max_model_len - max_tokens, repo, window)
    _print_notes(prompt, with_context=repo is not None)
    params = replace(params, max_tokens=max_tokens, stop_token_ids=llm.tokenizer.fim_stop_ids)
    if as_json:
        (output,) = llm.generate([prompt.token_ids], params)
        print_json(_as_object(cursor, prompt, output.outputs[0]))
        return
    for piece in llm.stream(prompt.token_ids, params):
        print(piece, end="", flush=True)
    print()
    options.print_speed(piece.metrics)


def _print_notes(prompt: "CompletionPrompt", with_context: bool) -> None:
    """What the prompt holds of the file and of its repository: nothing is left out silently."""
    if prompt.dropped_tokens:
        print(f"[{prompt.dropped_tokens} tokens far from the cursor left out]", file=sys.stderr)
    if with_context:
        print(f"[context: {', '.join(prompt.context_paths) or 'no related file fits'}]", file=sys.stderr)


def _as_object(cursor: "Cursor", prompt: "CompletionPrompt", output: "CompletionOutput") -> dict[str, Any]:
    return {
        "path": str(cursor.path),
        "completion": output.text,
        "finish_reason": output.finish_reason,
        "context": list(prompt.context_paths),
        "dropped_tokens": prompt.dropped_tokens,
    }


def answer_length(params: "SamplingParams", max_model_len: int) -> int:
    """Tokens to keep free for the completion. Raises UsageError if they leave none for the prompt."""
    max_tokens = params.max_tokens or max(1, min(128, max_model_len // 4))
    if max_tokens >= max_model_len:
        raise UsageError(f"--max-tokens {max_tokens} leaves no room for a prompt: the context has {max_model_len}")
    return max_tokens


def read_cursor(place: str) -> "Cursor":
    """The file and the cursor of `FILE[:LINE[:COL]]`; a file whose name has colons and digits wins over a place."""
    from codemill.chat.completion import Cursor

    if Path(place).exists():
        return Cursor.at(Path(place))
    match = re.fullmatch(r"(.+?):(\d{1,9})(?::(\d{1,9}))?", place)
    if match is None:
        raise UsageError(f"{place} does not exist; write FILE, FILE:LINE or FILE:LINE:COL")
    path, line, column = match.groups()
    return Cursor.at(Path(path), int(line), int(column) if column is not None else None)
