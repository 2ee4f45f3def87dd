"""OpenVINO GenAI on a model that optimum-intel exports with random weights, quantised by NNCF."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codemill.bench.engines import EngineOptions, Timing
from codemill.errors import CodemillError

_BACKENDS = ("SDPA", "PA")  # one stateful graph; continuous batching over paged attention
_GROUP_SIZE = 32
_SUFFIX = "-openvino"


class OpenVino:
    """A pipeline with one of the attention backends, built anew for the other one when that is used.

    It compiles its kernels when it first sees a shape, so a new one runs it once before it is timed.
    """

    settings = _BACKENDS

    def __init__(self, path: Path, num_threads: int) -> None:
        self._path, self._num_threads = path, num_threads
        self.weights: dict[str, Any] = {}
        self._pipelines: dict[str, Any] = {}
        self._pipeline(_BACKENDS[0])

    def run(self, prompts: Sequence[Sequence[int]], num_new: int, setting: str) -> Timing:
        import numpy as np
        import openvino
        import openvino_genai

        def generate(ids: Any, count: int) -> Any:
            inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
            config = openvino_genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
            return pipeline.generate(inputs, config).perf_metrics.raw_metrics

        is_new, pipeline, ids = setting not in self._pipelines, self._pipeline(setting), np.array(prompts, np.int64)
        if is_new:
            generate(ids[:, ::-1].copy(), min(num_new, 2))  # no prompt that is asked for comes twice
        start = time.perf_counter()
        raw = generate(ids, num_new)
        seconds = time.perf_counter() - start
        return timing_of_steps(seconds, raw.m_new_token_times, raw.m_batch_sizes, len(prompts), num_new)

    def _pipeline(self, backend: str) -> Any:
        if backend not in self._pipelines:
            import openvino_genai

            self._pipelines.clear()  # two of them would take the memory of two models
            self._pipelines[backend] = openvino_genai.LLMPipeline(
                self._path, "CPU", ATTENTION_BACKEND=backend, INFERENCE_NUM_THREADS=self._num_threads
            )
        return self._pipelines[backend]


def timing_of_steps(
    seconds: float, times: Sequence[float], num_tokens: Sequence[int], batch: int, num_new: int
) -> Timing:
    """From when each step ended, in milliseconds, and how many tokens it gave; `seconds` are those of the whole run.

    Not from the pipeline's own means: those divide the time of a step by the batch.
    """
    first = next((i for i, count in enumerate(num_tokens) if count == batch), None)
    if first is None:
        raise CodemillError(f"its pipeline never computed {batch} sequences together")
    steps = [times[i] - times[i - 1] for i in range(first + 1, len(times)) if num_tokens[i] == batch]
    decode = (num_new - 1) * sum(steps) / len(steps) / 1000 if steps else 0.0
    return Timing(seconds - (times[-1] - times[first]) / 1000, decode)


def prepare(options: EngineOptions) -> None:
    """Write the model."""
    path = options.path(_SUFFIX)
    if not path.exists():
        _export(path, options)


def create(options: EngineOptions) -> OpenVino:
    return OpenVino(options.path(_SUFFIX), options.num_threads)


def _export(path: Path, options: EngineOptions) -> None:
    """Write an OpenVINO model of random weights, by way of a checkpoint."""
    import torch
    import transformers
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    checkpoint, half_written = path.with_name(path.name + "-checkpoint"), path.with_name(path.name + "-part")
    config = transformers.AutoConfig.for_model(**options.config)
    torch.set_default_dtype(torch.bfloat16)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(checkpoint)
    torch.set_default_dtype(torch.float32)
    bits = {"int4": 4, "int8": 8}.get(options.quantization or "")
    quantization = None
    if bits is not None:
        sizes = {"group_size": _GROUP_SIZE, "ratio": 1.0, "all_layers": True} if bits == 4 else {}
        quantization = OVWeightQuantizationConfig(bits=bits, sym=True, **sizes)
    model = OVModelForCausalLM.from_pretrained(
        checkpoint, export=True, compile=False, quantization_config=quantization, load_in_8bit=bits == 8 or None
    )
    model.save_pretrained(half_written)
    shutil.rmtree(checkpoint)
    half_written.rename(path)
