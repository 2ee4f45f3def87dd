"""Where weights go and in which precision: dtype and device as users write them, and whether there is room."""

import logging

import torch

from codemill.config import ModelConfig, QuantizationConfig
from codemill.errors import CodemillError, UsageError
from codemill.footprint import (
    FIT_TOKENS,
    QUANTIZATIONS,
    RUNTIME_BYTES,
    available_memory,
    count_parameters,
    measure,
    quantized_bytes,
    quantized_expert_bytes,
)

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
PLAIN = "none"  # quantization: weights as floats, also those that a file has quantised
_GIB = 2**30
_LOG = logging.getLogger("codemill.models")


def dtype_name(dtype: torch.dtype) -> str:
    """The name `config.json` uses, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def resolve_dtype(dtype: str | torch.dtype | None, config: ModelConfig) -> torch.dtype:
    """The dtype to compute in; None and "auto" mean the checkpoint's own, or bfloat16 if that is none of DTYPES.

    Raises UsageError listing the choices.
    """
    if dtype is None or dtype == "auto":
        return DTYPES.get(config.dtype or "", torch.bfloat16)
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype.lower().removeprefix("torch.") in DTYPES:
        return DTYPES[dtype.lower().removeprefix("torch.")]
    raise UsageError(f"dtype {dtype!s} is not supported: choose auto, {', '.join(DTYPES)}")


def resolve_device(device: str | torch.device) -> torch.device:
    """A device that exists; "auto" is a GPU where there is one. Raises UsageError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device {device!r} is unknown: choose auto, cpu, cuda or cuda:N") from None
    if found.type == "cuda":
        _check_gpu(found)
    elif found.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device mps is not available: it needs a Mac with Apple silicon; use cpu")
    elif found.type not in ("cpu", "mps"):
        raise UsageError(f"device {device!s} is not supported: choose auto, cpu, cuda or cuda:N")
    return found


def _check_gpu(device: torch.device) -> None:
    if not torch.cuda.is_available():
        raise UsageError(f"device {device} is not available: this torch sees no GPU; use cpu, or install a CUDA build")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise UsageError(f"device {device} does not exist: there are {torch.cuda.device_count()} GPUs, from cuda:0 on")


def resolve_quantization(
    wanted: str | QuantizationConfig | None, stored: QuantizationConfig | None
) -> QuantizationConfig | None:
    """How the weights are to be packed: as `wanted`, or as they are on disk. Raises UsageError if the two differ.

    wanted: "none" for plain weights, which None leaves to the checkpoint.
    """
    if wanted == PLAIN:
        if stored is not None:
            raise UsageError(f"the model is quantised as {stored}, and can only be loaded so: leave quantization out")
        return None
    chosen = QuantizationConfig.parse(wanted) if isinstance(wanted, str) else wanted
    if stored is None or chosen is None:
        return stored or chosen
    if chosen != stored:
        raise UsageError(f"the model is quantised as {stored} already: leave quantization {chosen} out")
    return stored


def check_memory(
    name: str,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    quantization: QuantizationConfig | None = None,
    num_bytes: int | None = None,
) -> None:
    """Raises CodemillError if the weights of model `name` do not fit the memory that is free now.

    num_bytes: what they take, where that is not said by dtype and quantization.
    """
    if num_bytes is not None:
        needed, form = num_bytes, str(quantization or dtype_name(dtype))
    elif quantization is None:
        needed, form = count_parameters(config) * dtype.itemsize, dtype_name(dtype)
    else:
        needed, form = quantized_bytes(config, quantization, dtype.itemsize), str(quantization)
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if needed <= available:
        return
    raise CodemillError(
        f"{name}: not enough memory: its weights take {needed / _GIB:.1f} GiB as {form}, "
        f"and {available / _GIB:.1f} GiB are available on {device}; {_smaller(config, needed, available, dtype)}"
    )


def expected_mapped_bytes(config: ModelConfig, dtype: torch.dtype, quantization: QuantizationConfig) -> tuple[int, int]:
    """How large the files of a quantised model are by its config, and the experts in them."""
    return quantized_bytes(config, quantization, dtype.itemsize), quantized_expert_bytes(config, quantization)


def check_mapped(name: str, config: ModelConfig, total: int, experts: int) -> None:
    """Raise CodemillError if of mapped weights of `total` bytes not even those but the experts fit in memory.

    Every token needs those, beside the cache of a context of FIT_TOKENS.
    """
    always, cache, available = total - experts, _cache_bytes(config), available_memory()
    if always + cache > available:
        raise CodemillError(
            f"{name}: not enough memory: of {total / _GIB:.1f} GiB of weights every token needs "
            f"{always / _GIB:.1f} GiB, beside {cache / _GIB:.1f} GiB for a context of {FIT_TOKENS} tokens, and "
            f"{available / _GIB:.1f} GiB are available; choose a smaller model"
        )


def fits_mapped(name: str, config: ModelConfig, total: int) -> bool:
    """Whether mapped weights of `total` bytes fit as a whole in the memory that is free now.

    If not, experts can be read from disk as they are needed, and the log says so.
    """
    available = available_memory()
    if total + _cache_bytes(config) + RUNTIME_BYTES <= available:
        return True
    if config.moe is not None:
        _LOG.warning(
            "%s: %.1f GiB of weights, and %.1f GiB of memory are available: experts are read from disk as needed",
            *(name, total / _GIB, available / _GIB),
        )
    return False


def _cache_bytes(config: ModelConfig) -> int:
    footprint = measure(config)
    return FIT_TOKENS * footprint.kv_bytes_per_token + footprint.state_bytes


def _smaller(config: ModelConfig, needed: int, available: int, dtype: torch.dtype) -> str:
    """What to do about too large a model."""
    if dtype.itemsize > 2 and needed == count_parameters(config) * dtype.itemsize:
        return f"dtype bf16 takes {needed / 2 / _GIB:.1f} GiB"
    packed = quantized_bytes(config, QUANTIZATIONS["int4"], dtype.itemsize)
    return f"quantization int4 takes {packed / _GIB:.1f} GiB" if packed <= available else "choose a smaller model"
