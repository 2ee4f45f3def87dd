"""What quantising costs in quality: perplexity, next tokens, and greedy text of the embedded model in each format.

    python benchmarks/quantization_quality.py [--threads 2] [--every 2] [--output benchmarks/results/NAME.json]

Teacher forced on text that the embedded model has not seen in training: library modules and small tasks, of which every
second window of 1,024 tokens is taken. The reference is the model in bf16. Quantised models compute as they do when
they generate: products with packed weights and 8-bit activations by the C++ library, fp32 between them. "weights only"
has the dequantised weights in fp32 products. "largest weight" has the usual scales, which map that weight of a group to
the largest number, instead of those with the least squared error. "table" is the embedding, which is the head as well.

Greedy text is that of the engine, for prompts from the same texts: how often the next token is the reference's, given
what the reference wrote; and how long the text is the same when each model goes on from its own.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from torch import Tensor
from transformers_speed import processor

from codemill import LLM, SamplingParams
from codemill.chat import Tokenizer
from codemill.config import PackedFormat, QuantizationConfig
from codemill.data.texts import cut_windows, sample_windows
from codemill.eval.held_out_text import held_out_modules, task_files, training_modules
from codemill.eval.perplexity import Prediction, measure
from codemill.kernels.packed_matrix import PackedMatrix
from codemill.kernels.quantized_linear import packed_tensors
from codemill.models import CausalLM, load_model
from codemill.models.calibration import CalibratedWeights
from codemill.models.gptq import Statistics, fill_calibrated
from codemill.models.quantized import empty_like, matrices, pack_modules, packed_weights
from codemill.models.skeleton import set_parameter

CONTEXT = 1024
CALIBRATION_WINDOW, CALIBRATION_TOKENS, SEED = 512, 32_768, 0
TABLE = "model.embed_tokens.weight"
PROMPTS_OF_EACH, PROMPT_TOKENS, NEW_TOKENS = 64, 64, 64
GREEDY = ("fp32", "int8", "int4", "int4:head8", "int4, GPTQ", "int4:head8, GPTQ")
FORMATS = (
    "int8", "int8:asym", "int8:g64", "int8:g64:asym",
    "int4", "int4:head8", "int4:asym", "int4:asym:head8", "int4:g64", "int4:g64:head8", "int4:g64:asym",
    "int4:g64:asym:head8",
)  # fmt: skip
CALIBRATED = ("int8", "int4", "int4:head8", "int4:asym:head8", "int4:g64:head8", "int4:g64:asym:head8")

Fill = Callable[[str, PackedMatrix, Tensor], None]


@dataclass(frozen=True)
class Texts:
    """Windows of token ids: what is measured, by name, and what is calibrated with."""

    measured: dict[str, list[list[int]]]
    calibration: list[list[int]]
    more_calibration: dict[int, list[list[int]]]


def read_texts(every: int) -> Texts:
    encode = Tokenizer.load(None).encode
    measured = {
        "held-out modules": [encode(text) for text in held_out_modules()],
        "held-out tasks": [encode(text) for text in task_files()],
    }
    seen = [encode(text) for text in training_modules() + task_files(held_out=False)]
    sizes = (CALIBRATION_TOKENS // 4, CALIBRATION_TOKENS, CALIBRATION_TOKENS * 4)
    samples = {size: sample_windows(seen, CALIBRATION_WINDOW, size, SEED) for size in sizes}
    windows = {name: cut_windows(documents, CONTEXT)[::every] for name, documents in measured.items()}
    return Texts(windows, samples[CALIBRATION_TOKENS], samples)


def nearest(name: str, matrix: PackedMatrix, weight: Tensor) -> None:
    matrix.fill(weight)


def largest_weight(name: str, matrix: PackedMatrix, weight: Tensor) -> None:
    """Symmetric scales by the usual rule."""
    top = 2 ** (matrix.bits - 1) - 1
    groups = weight.unflatten(1, (-1, matrix.group_size))
    scale = (groups.abs().amax(dim=2) / top).half()
    inverse = torch.where(scale > 0, 1 / scale.float(), 0.0)
    quantised = (groups * inverse[..., None]).round().clamp(-top - 1, top) + top + 1
    matrix.fill_quantised(quantised.flatten(1).to(torch.uint8), scale, None)


def calibrated(quantization: QuantizationConfig, windows: Sequence[Sequence[int]], with_table: bool = False) -> Fill:
    batches = [torch.tensor([window]) for window in windows]
    model = load_model(None, "float32")
    weights = CalibratedWeights(model, batches, quantization.format_of)

    def fill(name: str, matrix: PackedMatrix, weight: Tensor) -> None:
        if name != TABLE:
            for target, source in zip(tensors(matrix), tensors(weights.take(name)), strict=True):
                target.copy_(source)
        elif with_table:
            fill_calibrated(matrix, weight, inputs_of_head(model, batches))
        else:
            matrix.fill(weight)

    return fill


def inputs_of_head(model: CausalLM, batches: Sequence[Tensor]) -> Statistics:
    statistics = Statistics()
    with torch.inference_mode():
        for ids in batches:
            statistics.add(model.hidden_states(ids))
    return statistics


def tensors(matrix: PackedMatrix) -> list[Tensor]:
    return list(packed_tensors("", matrix).values())


def quantised(format_of: Callable[[str], PackedFormat | None], fill: Fill = nearest) -> CausalLM:
    model = load_model(None, "float32")
    weights = matrices(model)
    pack_modules(model, format_of)
    for name, meta in packed_weights(model).items():
        matrix = empty_like(meta, torch.device("cpu"))
        fill(name, matrix, weights[name].detach())
        for key, tensor in packed_tensors(name, matrix).items():
            set_parameter(model, key, tensor)
    return model


def dequantised(model: CausalLM) -> CausalLM:
    """The same weights in fp32 products."""
    plain = load_model(None, "float32")
    for name, matrix in packed_weights(model).items():
        set_parameter(plain, name, matrix.dequantize())
    return plain


def candidates(texts: Texts) -> dict[str, Callable[[], CausalLM]]:
    """The models that are compared, by name; each is built when its turn comes."""
    forms = {name: QuantizationConfig.parse(name) for name in FORMATS}

    def plain(name: str, fill: Fill = nearest) -> CausalLM:
        return quantised(forms[name].format_of, fill)

    def without_table(name: str) -> CausalLM:
        return quantised(lambda weight: None if weight == TABLE else forms[name].format_of(weight))

    def by_gptq(name: str, tokens: int = CALIBRATION_TOKENS, with_table: bool = False) -> CausalLM:
        return plain(name, calibrated(forms[name], texts.more_calibration[tokens], with_table))

    models: dict[str, Callable[[], CausalLM]] = {"fp32": lambda: load_model(None, "float32")}
    models |= {name: lambda name=name: plain(name) for name in FORMATS}
    models |= {f"{name}, table in bf16": lambda name=name: without_table(name) for name in ("int8", "int4")}
    models |= {f"{name}, weights only": lambda name=name: dequantised(plain(name)) for name in ("int8", "int4:head8")}
    models |= {
        f"{name}, largest weight": lambda name=name: plain(name, largest_weight) for name in ("int8", "int4:head8")
    }
    models |= {f"{name}, GPTQ": lambda name=name: by_gptq(name) for name in CALIBRATED}
    models["int4, GPTQ, table too"] = lambda: by_gptq("int4", with_table=True)
    for tokens in texts.more_calibration:
        if tokens != CALIBRATION_TOKENS:
            models[f"int4:head8, GPTQ, {tokens:,} tokens"] = lambda tokens=tokens: by_gptq("int4:head8", tokens)
    return models


def measure_all(models: Mapping[str, CausalLM], texts: Texts) -> dict[str, dict[str, Any]]:
    """Figures of each model by text; the first model is the reference."""
    figures: dict[str, dict[str, Any]] = {name: {} for name in models}
    for text, windows in texts.measured.items():
        for name, prediction in zip(models, measure(list(models.values()), windows), strict=True):
            figures[name][text] = prediction.to_json()
            print(f"{text:18}{name:38}{_line(prediction)}", flush=True)
    return figures


def _line(prediction: Prediction) -> str:
    departure = prediction.departure
    if departure is None:
        return f"perplexity {prediction.perplexity:.4f}"
    return (
        f"perplexity {prediction.perplexity:.4f}, "
        f"loss {departure.loss_difference:+.5f} ({departure.standard_error:.5f}), same "
        f"next token {100 * departure.agreement:.2f} %, KL {departure.divergence:.5f}"
    )


def size_of(model: CausalLM) -> dict[str, float]:
    """Bits for each weight of the projections, and the bytes of all weights."""
    packed = {name: matrix for name, matrix in packed_weights(model).items() if name != TABLE}
    num_weights = sum(matrix.num_rows * matrix.num_columns for matrix in packed.values())
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    if not packed:
        return {"bytes": num_bytes}
    return {"bits": 8 * sum(matrix.nbytes for matrix in packed.values()) / num_weights, "bytes": num_bytes}


def prompts(texts: Texts) -> dict[str, list[list[int]]]:
    """Stretches of the windows, which begin somewhere in a task or a module."""
    found = {}
    for name, windows in texts.measured.items():
        stretches = [window[start : start + PROMPT_TOKENS] for start in (0, 200, 400, 600) for window in windows]
        found[name] = [stretch for stretch in stretches if len(stretch) == PROMPT_TOKENS][:PROMPTS_OF_EACH]
    return found


def greedy(llm: LLM, given: Mapping[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    return {
        name: [list(output.outputs[0].token_ids) for output in llm.generate(each, params)]
        for name, each in given.items()
    }


@torch.inference_mode()
def agreement(model: CausalLM, given: Sequence[list[int]], answers: Sequence[list[int]]) -> float:
    """Share of the tokens of the answers that the model would have chosen too, after the same tokens."""
    ids = torch.tensor([[*prompt, *answer] for prompt, answer in zip(given, answers, strict=True)])
    chosen = [model(row[None, :-1])[0, PROMPT_TOKENS - 1 :].argmax(dim=-1) for row in ids]
    return (torch.stack(chosen) == ids[:, PROMPT_TOKENS:]).double().mean().item()


def divergence(ours: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> dict[str, float]:
    """Share of answers that are the same to the end, and the tokens before the first other one."""
    pairs = zip(ours, reference, strict=True)
    lengths = [next((i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), NEW_TOKENS) for pair in pairs]
    return {
        "answers": len(lengths),
        "identical": sum(length == NEW_TOKENS for length in lengths) / len(lengths),
        "mean tokens before the first other": statistics.mean(lengths),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=2, help="take every n-th window")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    texts, tokenizer = read_texts(options.every), Tokenizer.load(None)
    models = {"bf16": load_model(None)} | {name: build() for name, build in candidates(texts).items()}
    figures = measure_all(models, texts)
    given = prompts(texts)
    expected = greedy(LLM.from_parts(models["bf16"], tokenizer), given)
    for name, model in models.items():
        figures[name] |= size_of(model)
        if name in GREEDY:
            found = greedy(LLM.from_parts(model, tokenizer), given)
            figures[name]["greedy"] = {
                text: {"same next token": agreement(model, given[text], answers)} | divergence(found[text], answers)
                for text, answers in expected.items()
            }
            print(name, json.dumps(figures[name]["greedy"]), flush=True)
    result = {
        "machine": {"processor": processor(), "threads": options.threads},
        "versions": {"python": python_version(), "codemill": version("codemill"), "torch": version("torch")},
        "command": f"python benchmarks/quantization_quality.py --every {options.every}",
        "calibration": {"tokens": CALIBRATION_TOKENS, "window": CALIBRATION_WINDOW, "seed": SEED},
        "figures": figures,
    }
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
