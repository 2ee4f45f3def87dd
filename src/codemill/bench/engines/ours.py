"""Codemill itself, through `LLM` and its engine."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from codemill.bench.engines import EngineOptions, Timing

if TYPE_CHECKING:
    from codemill.engine.llm import LLM
    from codemill.engine.request import Request
    from codemill.models.decoder import CausalLM


class OurEngine:
    """One `LLM`. No prefix cache: no prompt comes twice, and memory is what the sequences need."""

    settings = ("default",)

    def __init__(self, llm: "LLM") -> None:
        self.llm = llm
        self.weights = held_weights(llm.model)

    def run(self, prompts: Sequence[Sequence[int]], num_new: int, setting: str) -> Timing:
        engine, start = self.llm.engine, time.perf_counter()
        requests = [self._request(prompt, num_new) for prompt in prompts]
        first = decode = 0.0
        num_steps = 0
        while not engine.is_idle:
            step_start = time.perf_counter()
            stepped = engine.step()
            now = time.perf_counter()
            is_decode = len(stepped) == len(requests) and all(len(each.token_ids) > 1 for each in stepped)
            if is_decode:
                decode, num_steps = decode + now - step_start, num_steps + 1
            elif not first and all(request.sequences[0].token_ids for request in requests):
                first = now - start
        for request in requests:
            request.raise_error()
        return Timing(first, decode / max(num_steps, 1) * (num_new - 1))

    def _request(self, prompt: Sequence[int], num_new: int) -> "Request":
        from codemill.engine.prompts import Prompt
        from codemill.engine.sampling_params import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=num_new, ignore_eos=True)
        request = self.llm.builder.build(Prompt(None, tuple(prompt)), params)
        self.llm.engine.add(request)
        return request


def held_weights(model: "CausalLM") -> dict[str, Any]:
    """Bytes of the loaded weights, by what is read of them, the format of the embedding and of most."""
    sizes = {name: parameter.nbytes for name, parameter in model.named_parameters()}
    held = {
        "total": sum(sizes.values()),
        "experts": sum(size for name, size in sizes.items() if ".experts." in name),
        "embedding": sum(size for name, size in sizes.items() if name.startswith("model.embed_tokens.")),
    }
    quantization = model.config.quantization
    form_name = None if quantization is None else {"bits": quantization.bits, "name": str(quantization)}
    kept_bits = model.model.norm.weight.dtype.itemsize * 8
    packed = getattr(model.model.embed_tokens, "matrix", None)
    if packed is None:
        return {"held": held, "format": {"bits": kept_bits, "kept_bits": kept_bits}, "quantization": form_name}
    form = {"bits": packed.bits, "group_size": packed.group_size, "symmetric": packed.symmetric}
    return {"held": held, "format": {**form, "kept_bits": kept_bits}, "quantization": form_name}


def create(options: EngineOptions) -> OurEngine:
    import torch

    from codemill.engine.llm import LLM

    torch.set_num_threads(options.num_threads)
    llm = LLM(
        options.model,
        dtype=options.dtype,
        device="cpu",
        quantization=options.quantization,
        max_model_len=options.max_tokens,
        enable_prefix_cache=False,
        max_num_seqs=max(options.max_batch, 1),
    )
    return OurEngine(llm)
