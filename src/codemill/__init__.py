"""Codemill: the Qwen3-Coder system, whole, in one readable Python codebase."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codemill.engine.llm import LLM
    from codemill.engine.outputs import CompletionOutput, RequestOutput, StreamPiece
    from codemill.engine.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "CompletionOutput", "RequestOutput", "SamplingParams", "StreamPiece", "__version__"]

_EXPORTS = {
    "LLM": "codemill.engine.llm",
    "CompletionOutput": "codemill.engine.outputs",
    "RequestOutput": "codemill.engine.outputs",
    "SamplingParams": "codemill.engine.sampling_params",
    "StreamPiece": "codemill.engine.outputs",
}


def __getattr__(name: str) -> Any:
    # On first use: importing the package, as the command line does, must not import torch.
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
