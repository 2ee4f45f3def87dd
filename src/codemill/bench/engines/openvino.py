"""OpenVINO GenAI on a model that optimum-intel exports with random weights, quantised by NNCF."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codemill.bench.engines import EngineOptions, Timing

_BACKENDS = ("SDPA", "PA")  # one stateful graph; continuous batching over paged attention
_GROUP_SIZE = 32


class OpenVino:
    """One pipeline for each attention backend, built when it is first used."""

    settings = _BACKENDS

    def __init__(self, path: Path, num_threads: int) -> None:
        self._path, self._num_threads = path, num_threads
        self._pipelines: dict[str, Any] = {}

    def run(self, prompts: Sequence[Sequence[int]], num_new: int, setting: str) -> Timing:
        import numpy as np
        import openvino
        import openvino_genai

        ids = openvino.Tensor(np.array(prompts, np.int64))
        inputs = openvino_genai.TokenizedInputs(
            ids, openvino.Tensor(np.ones((len(prompts), len(prompts[0])), np.int64))
        )
        config = openvino_genai.GenerationConfig(max_new_tokens=num_new, ignore_eos=True, do_sample=False)
        pipeline, first = self._pipeline(setting), []

        def streamed(_: int) -> Any:
            first.append(time.perf_counter())
            return openvino_genai.StreamingStatus.RUNNING

        start = time.perf_counter()
        if len(prompts) == 1:
            pipeline.generate(inputs, config, _streamer(streamed))
            return Timing(first[0] - start, first[-1] - first[0])
        metrics = pipeline.generate(inputs, config).perf_metrics
        return Timing(metrics.get_ttft().mean / 1000, metrics.get_tpot().mean / 1000 * (num_new - 1))

    def _pipeline(self, backend: str) -> Any:
        if backend not in self._pipelines:
            import openvino_genai

            self._pipelines.clear()  # two of them would take the memory of two models
            self._pipelines[backend] = openvino_genai.LLMPipeline(
                self._path, "CPU", ATTENTION_BACKEND=backend, INFERENCE_NUM_THREADS=self._num_threads
            )
        return self._pipelines[backend]


def _streamer(function: Any) -> Any:
    import openvino_genai

    class TokenStreamer(openvino_genai.StreamerBase):
        """Is told of each token as it comes."""

        def write(self, token: Any) -> Any:
            return function(token)

        def end(self) -> None:
            pass

    return TokenStreamer()


def create(options: EngineOptions) -> OpenVino:
    path = options.path("-openvino")
    if not path.exists():
        _export(path, options)
    return OpenVino(path, options.num_threads)


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
