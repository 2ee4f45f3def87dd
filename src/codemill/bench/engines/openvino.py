"""OpenVINO GenAI on a model that optimum-intel exports with random weights, quantised by NNCF."""

import shutil
import time
from collections.abc import Callable, Sequence
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
        self.weights: dict[str, Any] = {}
        self._pipelines: dict[str, Any] = {}

    def run(self, prompts: Sequence[Sequence[int]], num_new: int, setting: str) -> Timing:
        pipeline = self._pipeline(setting)
        if len(prompts) == 1:
            return self._run_one(pipeline, prompts, num_new)
        # Streams are for one prompt, and the pipeline's own metrics divide by the batch. So a run that ends with the
        # first token tells prefill; its prompts are others, because the pipeline remembers prefixes.
        first = self._generate(pipeline, [prompt[::-1] for prompt in prompts], 1)
        return Timing(first, max(self._generate(pipeline, prompts, num_new) - first, 1e-9))

    def _run_one(self, pipeline: Any, prompts: Sequence[Sequence[int]], num_new: int) -> Timing:
        times: list[float] = []
        start = time.perf_counter()
        self._generate(pipeline, prompts, num_new, _streamer(lambda: times.append(time.perf_counter())))
        return Timing(times[0] - start, times[-1] - times[0])

    def _generate(self, pipeline: Any, prompts: Sequence[Sequence[int]], num_new: int, streamer: Any = None) -> float:
        """Seconds of a greedy generation."""
        import numpy as np
        import openvino
        import openvino_genai

        ids = np.array(prompts, np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        config = openvino_genai.GenerationConfig(max_new_tokens=num_new, ignore_eos=True, do_sample=False)
        start = time.perf_counter()
        pipeline.generate(inputs, config, *([] if streamer is None else [streamer]))
        return time.perf_counter() - start

    def _pipeline(self, backend: str) -> Any:
        if backend not in self._pipelines:
            import openvino_genai

            self._pipelines.clear()  # two of them would take the memory of two models
            self._pipelines[backend] = openvino_genai.LLMPipeline(
                self._path, "CPU", ATTENTION_BACKEND=backend, INFERENCE_NUM_THREADS=self._num_threads
            )
        return self._pipelines[backend]


def _streamer(tell: Callable[[], None]) -> Any:
    import openvino_genai

    class TokenStreamer(openvino_genai.StreamerBase):  # type: ignore[misc, unused-ignore]
        """Calls `tell` at each token."""

        def write(self, token: Any) -> Any:
            tell()
            return openvino_genai.StreamingStatus.RUNNING

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
