"""The engine: throughput against batch size, reuse of prefixes, speculative decoding, and what scheduling costs.

    python benchmarks/engine_speed.py [--threads 2] [--rounds 5] [--output benchmarks/results/NAME.json]

All figures are of one run on one machine; batch sizes, cold and warm prompts, and decoding with and without drafts take
turns, and medians are reported. Models: `random:qwen3-0.6b` in bf16 and the embedded model. Beside decode stands the
roofline: the bytes that a step must read, weights and KV cache, over the read bandwidth measured here.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from copying_model import make_copying
from transformers_speed import processor, read_bandwidth

from codemill import LLM, SamplingParams
from codemill.chat import Tokenizer
from codemill.engine.memory import kv_bytes_per_token
from codemill.engine.prompts import Prompt
from codemill.engine.request import Request
from codemill.engine.sequence import SampledToken
from codemill.models import CausalLM, load_model

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
PROMPT_TOKENS, DECODE_TOKENS = 128, 32
LONG_PROMPT = {"random:qwen3-0.6b": 8192, "embedded": 960}
DOCUMENT_TOKENS, EDIT_EVERY = 400, 25


def random_prompt(llm: LLM, length: int, rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.choices(range(300, min(llm.model.config.vocab_size, 100_000)), k=length))


def add(llm: LLM, prompt: tuple[int, ...], max_tokens: int) -> Request:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    request = llm.builder.build(Prompt(None, prompt), params)
    llm.engine.add(request)
    return request


def decode_seconds(llm: LLM, batch_size: int, rng: random.Random) -> float:
    """Median seconds of a step that gives each of `batch_size` sequences a token."""
    for _ in range(batch_size):
        add(llm, random_prompt(llm, PROMPT_TOKENS, rng), DECODE_TOKENS)
    seconds = []
    while not llm.engine.is_idle:
        start = time.perf_counter()
        decoded = llm.engine.step()
        if len(decoded) == batch_size and all(len(sequence.token_ids) > 1 for sequence in decoded):
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_throughput(llm: LLM, rounds: int, bandwidth: float) -> list[dict[str, Any]]:
    rng = random.Random(0)
    series: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    for number in range(-1, rounds):
        for size in BATCH_SIZES:
            seconds = decode_seconds(llm, size, rng)
            if number >= 0:
                series[size].append(seconds)
    weights = sum(parameter.nbytes for parameter in llm.model.parameters())
    context = (PROMPT_TOKENS + DECODE_TOKENS // 2) * kv_bytes_per_token(llm.model.config, llm.model.dtype)
    rows = []
    for size, seconds in series.items():
        value = size / statistics.median(seconds)
        roofline = size * bandwidth / (weights + size * context)
        figure = {"figure": f"decode, batch {size}", "value": value, "unit": "tokens/s"}
        rows.append(figure | {"roofline": roofline, "fraction": value / roofline})
    for row in rows[1:]:
        row["over batch 1"] = row["value"] / rows[0]["value"]
    return rows


def measure_prefix(llm: LLM, length: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds to the first token of a prompt that is new, and of the same with another ending."""
    rng = random.Random(1)
    cold, warm = [], []
    for _ in range(rounds):
        prompt = random_prompt(llm, length, rng)
        for seconds, ending in ((cold, ()), (warm, random_prompt(llm, 4, rng))):
            (output,) = llm.generate([[*prompt[: length - len(ending)], *ending]], SamplingParams(max_tokens=1))
            seconds.append(output.metrics.first_token_seconds)
    medians = statistics.median(cold), statistics.median(warm)
    return [
        {"figure": f"TTFT of {length} new tokens", "value": medians[0], "unit": "s"},
        {"figure": f"TTFT of {length} tokens, all but 4 seen before", "value": medians[1], "unit": "s"},
        {"figure": "warm over cold", "value": medians[1] / medians[0], "unit": "ratio"},
    ]


def measure_speculation(make: Callable[[str | None], LLM], rounds: int, bandwidth: float) -> list[dict[str, Any]]:
    """Tokens per second of rewriting a document with a token changed every so often, with and without drafts."""
    rng = random.Random(2)
    llms = {method: make(method) for method in (None, "ngram")}
    document = random_prompt(llms[None], DOCUMENT_TOKENS, rng)
    edits = {document[i]: -100.0 for i in range(EDIT_EVERY, DOCUMENT_TOKENS, EDIT_EVERY)}
    params = SamplingParams(temperature=0.0, max_tokens=DOCUMENT_TOKENS - 20, ignore_eos=True, logit_bias=edits)
    rates: dict[str | None, list[float]] = {method: [] for method in llms}
    outputs = {}
    for number in range(-1, rounds):
        for method, llm in llms.items():
            (output,) = llm.generate([[*document, *document[:20]]], params)
            outputs[method] = output.outputs[0].token_ids
            if number >= 0:
                rates[method].append(output.metrics.tokens_per_second)
    assert outputs[None] == outputs["ngram"], "speculation changed the output"
    copied = sum(a == b for a, b in zip(outputs[None], document[20:], strict=True)) / len(outputs[None])
    weights = sum(parameter.nbytes for parameter in llms[None].model.parameters())
    plain, ngram = (statistics.median(rates[method]) for method in llms)
    metrics = llms["ngram"].metrics
    return [
        {"figure": "edit, plain", "value": plain, "unit": "tokens/s", "roofline": bandwidth / weights},
        {"figure": "edit, n-gram drafts", "value": ngram, "unit": "tokens/s"},
        {"figure": "drafts over plain", "value": statistics.median(map(_ratio, rates["ngram"], rates[None]))},
        {"figure": "share of the output that is copied", "value": copied},
        {"figure": "drafts accepted", "value": metrics["acceptance_rate"]},
    ]


def _ratio(one: float, other: float) -> float:
    return one / other


def measure_overhead(llm: LLM) -> list[dict[str, Any]]:
    """Milliseconds of a step at batch 32 without network and sampler: once beside them, once with constants instead."""
    beside = statistics.median(_steps_without_network(llm))
    model, tokens = llm.model, [SampledToken(300 + row) for row in range(BATCH_SIZES[-1])]
    hidden = torch.zeros(1, PROMPT_TOKENS * len(tokens), model.config.hidden_size, dtype=model.dtype)
    logits = torch.zeros(len(tokens), model.config.vocab_size)
    model.compute = lambda ids, *_: hidden[:, : ids.shape[1]]  # type: ignore[method-assign]
    model.logits = lambda rows, *_: logits[: rows.shape[0]]  # type: ignore[method-assign]
    llm.engine._sample = lambda sequences, *_: tokens[: len(sequences)]  # type: ignore[method-assign]
    alone = statistics.median(_step_seconds(llm))
    return [
        {"figure": "a step at batch 32 without network and sampler", "value": 1000 * alone, "unit": "ms"},
        {"figure": "the same, measured beside them", "value": 1000 * beside, "unit": "ms"},
    ]


def _steps_without_network(llm: LLM) -> list[float]:
    """Seconds of each step of decode, less those of the pass, the logits and the sampler."""
    engine, spent = llm.engine, [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                spent[-1] += time.perf_counter() - start

        return wrapper

    parts = {name: getattr(owner, name) for owner, name in ((engine.runner, "run"), (engine.runner, "logits"))}
    engine.runner.run, engine.runner.logits = timed(parts["run"]), timed(parts["logits"])  # type: ignore[method-assign]
    sample, engine._sample = engine._sample, timed(engine._sample)  # type: ignore[method-assign]
    whole = _step_seconds(llm, before_each=lambda: spent.append(0.0))
    engine.runner.run, engine.runner.logits = parts["run"], parts["logits"]  # type: ignore[method-assign]
    engine._sample = sample  # type: ignore[method-assign]
    return [seconds - inside for seconds, inside in zip(whole, spent[-len(whole) :], strict=True)]


def _step_seconds(llm: LLM, before_each: Callable[[], None] = lambda: None) -> list[float]:
    """Seconds of each step in which all of 32 sequences decode; these are the last steps."""
    rng, seconds = random.Random(3), []
    for _ in range(BATCH_SIZES[-1]):
        add(llm, random_prompt(llm, PROMPT_TOKENS, rng), 200)
    while not llm.engine.is_idle:
        before_each()
        start = time.perf_counter()
        decoded = llm.engine.step()
        if all(len(sequence.token_ids) > 1 for sequence in decoded) and len(decoded) == BATCH_SIZES[-1]:
            seconds.append(time.perf_counter() - start)
    return seconds


def copying_llm(model: CausalLM, method: str | None) -> LLM:
    return LLM.from_parts(model, Tokenizer.load(None), speculative=method, enable_prefix_cache=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bandwidth = read_bandwidth()
    figures: dict[str, list[dict[str, Any]]] = {}
    for name, long_prompt in LONG_PROMPT.items():
        spec = None if name == "embedded" else name
        figures[name] = measure_throughput(LLM(spec, enable_prefix_cache=False), options.rounds, bandwidth)
        figures[name] += measure_prefix(LLM(spec), long_prompt, options.rounds)
        print(json.dumps(figures[name], indent=1), flush=True)
    model = load_model("random:qwen3-0.6b", torch.bfloat16)
    make_copying(model, DOCUMENT_TOKENS)
    figures["copying model of the qwen3-0.6b shape"] = measure_speculation(
        lambda method: copying_llm(model, method), options.rounds, bandwidth
    )
    figures["embedded"] += measure_overhead(LLM())
    command = f"python benchmarks/engine_speed.py --rounds {options.rounds}"
    result = {
        "machine": {"processor": processor(), "threads": options.threads},
        "command": command,
        "bandwidth": bandwidth,
        "figures": figures,
    }
    print(json.dumps(result, indent=1))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
