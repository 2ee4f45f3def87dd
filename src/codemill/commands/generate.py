"""`codemill generate`: continue a prompt."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codemill.commands import add_verb, options, print_json
from codemill.config import read_json_object
from codemill.errors import CodemillError, UsageError

if TYPE_CHECKING:
    from codemill.engine.outputs import RequestOutput
    from codemill.engine.structured_output import StructuredOutput

EXAMPLES = '''
codemill generate 'def is_even(n: int)'
printf 'def add(a: int, b: int) -> int:\\n    """Return the sum of a and b."""\\n' | codemill generate -
codemill generate --model Qwen/Qwen3-0.6B --temperature 0.7 --seed 1 --max-tokens 200 '# Quick sort in Python'
codemill generate --json-schema person.json 'A person as JSON: '
codemill generate --json -n 3 --temperature 0.8 'def reverse(text: str) -> str:'
'''


def register(app: typer.Typer) -> None:
    add_verb(app, generate, EXAMPLES)


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads standard input.")],
    model: options.Model = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    samples: Annotated[int, typer.Option("--samples", "-n", help="Number of continuations.")] = 1,
    json_schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The answer is JSON that validates against this schema.")
    ] = None,
    regex: Annotated[str | None, typer.Option(help="The answer matches this regular expression.")] = None,
    logprobs: Annotated[int | None, typer.Option(help="With --json: log-probabilities of the K likeliest.")] = None,
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
    """Continue a prompt, as plain text (no chat template)."""
    from codemill import SamplingParams

    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop,
        n=samples,
        logprobs=logprobs,
        structured_output=_structure(json_schema, regex),
    )
    if logprobs is not None and not as_json:
        raise UsageError("--logprobs are only shown with --json: add it")
    text = options.read_prompt(prompt)
    llm = options.load_llm(
        model, dtype, device, max_model_len, threads, speculative, prefix_cache_dir, quantization, kv_cache_dtype
    )
    if as_json:
        print_json(as_object(llm.generate(text, params)[0]))
    elif samples > 1:
        _print_samples(llm.generate(text, params)[0])
    else:
        for piece in llm.stream(text, params):
            print(piece, end="", flush=True)
        print()
        options.print_speed(piece.metrics)


def _structure(json_schema: Path | None, regex: str | None) -> "StructuredOutput | None":
    """The form that the answer must have."""
    from codemill.engine.structured_output import StructuredOutput

    if json_schema is None and regex is None:
        return None
    try:
        schema = None if json_schema is None else read_json_object(json_schema, "give a file with a JSON schema")
    except CodemillError as error:  # here a wrong file is a wrong command
        raise UsageError(str(error)) from None
    return StructuredOutput(json_schema=schema, regex=regex)


def _print_samples(output: "RequestOutput") -> None:
    for sample in output.outputs:
        print(f"--- sample {sample.index + 1}\n{sample.text}")
    options.print_speed(output.metrics)


def as_object(output: "RequestOutput") -> dict[str, Any]:
    """A request's output as programs read it."""
    metrics = asdict(output.metrics) | {"tokens_per_second": output.metrics.tokens_per_second}
    return {"prompt": output.prompt, "outputs": [asdict(sample) for sample in output.outputs], "metrics": metrics}
