"""Codemill: the Qwen3-Coder system, whole, in one readable Python codebase."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codemill.engine.llm import LLM
    from codemill.engine.outputs import CompletionOutput, RequestOutput, StreamPiece
    from codemill.engine.sampling_params import SamplingParams
    from codemill.engine.structured_output import StructuredOutput
    from codemill.engine_config import EngineConfig, SpeculativeConfig

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "CompletionOutput",
    "EngineConfig",
    "RequestOutput",
    "SamplingParams",
    "SpeculativeConfig",
    "StreamPiece",
    "StructuredOutput",
    "__version__",
]

_EXPORTS = {
    "LLM": "codemill.engine.llm",
    "CompletionOutput": "codemill.engine.outputs",
    "EngineConfig": "codemill.engine_config",
    "RequestOutput": "codemill.engine.outputs",
    "SamplingParams": "codemill.engine.sampling_params",
    "SpeculativeConfig": "codemill.engine_config",
    "StreamPiece": "codemill.engine.outputs",
    "StructuredOutput": "codemill.engine.structured_output",
}


def __getattr__(name: str) -> Any:
    # On first use: importing the package, as the command line does, must not import torch.
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
