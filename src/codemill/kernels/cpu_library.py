"""The C++ kernels of `kernels/cpu/`, called through ctypes with plain pointers.

The library is built when the package is installed, and is not there if that machine had no C++ compiler (or one that
lacks GCC's vector extension). Then `load_cpu_library` returns None and every operation takes its PyTorch form.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from codemill.errors import CodemillError

_FOLDER = Path(__file__).parent / "cpu"
_NAME = "library"
_OUT_OF_MEMORY = 1

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
# The arguments of each kernel, as its C++ file declares them; all return 0 or an error.
_ARGUMENTS: dict[str, list[Any]] = {
    "codemill_adapted_product": [_POINTER, _INT],
    "codemill_adapter_gradient": [_POINTER, _INT],
    "codemill_attention_backward": [_POINTER, _INT],
    "codemill_combine_experts": [*[_POINTER] * 4, *[_INT] * 5],
    "codemill_compute": [_INT, ctypes.c_size_t, _POINTER, _INT],
    "codemill_decoder_step": [_POINTER, _POINTER, _INT, _INT],
    "codemill_expert_activation": [_POINTER, _INT],
    "codemill_expert_combination": [_POINTER, _INT],
    "codemill_experts_backward": [_POINTER, _INT, _INT],
    "codemill_experts_forward": [_POINTER, _INT, _INT],
    "codemill_gated_delta": [*[_POINTER] * 11, *[_INT] * 8, _FLOAT, *[_INT] * 2],
    "codemill_linear": [*[_POINTER] * 3, *[_INT] * 3],
    "codemill_norm_backward": [_POINTER, _INT, _INT],
    "codemill_norm_forward": [_POINTER, _INT, _INT],
    "codemill_paged_attention": [*[_POINTER] * 8, *[_INT] * 11],
    "codemill_read_memory": [_POINTER, ctypes.c_size_t, _POINTER, _INT],
    "codemill_repack_gguf": [_POINTER, *[_INT] * 3, *[_POINTER] * 3],
    "codemill_request_pages": [_POINTER, ctypes.c_size_t],
    "codemill_swiglu_backward": [_POINTER, _INT, _INT],
    "codemill_swiglu_forward": [_POINTER, _INT, _INT],
    "codemill_write_int8_kv": [*[_POINTER] * 4, *[_INT] * 3],
}


class CpuLibrary:
    """The loaded library. The interpreter is free for other threads while a kernel runs."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if it cannot be loaded, AttributeError if it lacks a kernel."""
        library = ctypes.CDLL(str(path))
        self.adapted_product = _declare(library, "codemill_adapted_product")
        self.adapter_gradient = _declare(library, "codemill_adapter_gradient")
        self.attention_backward = _declare(library, "codemill_attention_backward")
        self.combine_experts = _declare(library, "codemill_combine_experts")
        self.compute = _declare(library, "codemill_compute")
        self.decoder_step = _declare(library, "codemill_decoder_step")
        self.expert_activation = _declare(library, "codemill_expert_activation")
        self.expert_combination = _declare(library, "codemill_expert_combination")
        self.has_expert_adapter = library["codemill_has_expert_adapter"]
        self.experts_backward = _declare(library, "codemill_experts_backward")
        self.experts_forward = _declare(library, "codemill_experts_forward")
        self.gated_delta = _declare(library, "codemill_gated_delta")
        self.has_attention_training = library["codemill_has_attention_training"]
        self.has_expert_training = library["codemill_has_expert_training"]
        self.linear = _declare(library, "codemill_linear")
        self.norm_backward = _declare(library, "codemill_norm_backward")
        self.norm_forward = _declare(library, "codemill_norm_forward")
        self.paged_attention = _declare(library, "codemill_paged_attention")
        self.read_memory = _declare(library, "codemill_read_memory")
        self.repack_gguf = _declare(library, "codemill_repack_gguf")
        self.request_pages = _declare(library, "codemill_request_pages")
        self.swiglu_backward = _declare(library, "codemill_swiglu_backward")
        self.swiglu_forward = _declare(library, "codemill_swiglu_forward")
        self.write_int8_kv = _declare(library, "codemill_write_int8_kv")


def _declare(library: ctypes.CDLL, name: str) -> Callable[..., int]:
    function = library[name]
    function.argtypes, function.restype = _ARGUMENTS[name], _check
    return function


def _check(status: int) -> int:
    if status == _OUT_OF_MEMORY:
        raise CodemillError("out of memory in a CPU kernel; use a smaller max_model_len or fewer sequences at once")
    assert status == 0, f"a CPU kernel refused its arguments: {status}"
    return status


@cache
def load_cpu_library() -> CpuLibrary | None:
    """The library, or None where it was not built, cannot be loaded or lacks a kernel."""
    for suffix in EXTENSION_SUFFIXES:
        path = _FOLDER / f"{_NAME}{suffix}"
        if path.exists():
            try:
                return CpuLibrary(path)
            except (OSError, AttributeError):
                return None
    return None
