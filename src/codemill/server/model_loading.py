"""Makes engines of models, and gives their memory back."""

import gc
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from codemill.engine.serving import ServingEngine
from codemill.errors import UsageError
from codemill.server.model_entry import ModelDefinition
from codemill.spec import ModelSource, resolve


@dataclass(frozen=True)
class EngineLoader:
    """Loads a model as the options say. Call it with a definition.

    llm_options: arguments of `LLM`, for each model. num_replicas: more than 1 for processes behind one engine.
    max_waiting: of each model. keep_alive: seconds after which an engine repeats the progress of a request.
    """

    llm_options: Mapping[str, Any] = field(default_factory=dict)
    num_replicas: int = 1
    threads_per_replica: int | None = None
    max_waiting: int | None = None
    keep_alive: float = 5.0

    def __call__(self, definition: ModelDefinition) -> ServingEngine:
        """An engine that is ready. Raises UsageError or CodemillError as `LLM` does; takes as long as loading does."""
        options: dict[str, Any] = {**self.llm_options, **definition.options}
        queue: dict[str, Any] = {"max_waiting": self.max_waiting, "keep_alive": self.keep_alive}
        if self.num_replicas > 1:
            from codemill.engine.replicas import Replicas

            return Replicas(definition.spec, self.num_replicas, self.threads_per_replica, **queue, **options)
        from codemill.engine.async_engine import AsyncEngine
        from codemill.engine.llm import LLM

        return AsyncEngine(LLM(definition.spec, **options), **queue)


def free_memory() -> None:
    """Give the system back what an engine had that is closed and that nobody refers to."""
    gc.collect()  # an LLM and its engine refer to each other
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    from codemill.kernels.heap import give_back_memory

    give_back_memory()


def model_name(spec: str | None) -> str:
    """What a model is called where no name was given. Raises UsageError for a spec that means nothing."""
    source = resolve(spec)
    path = source.directory or source.file
    if source.kind == "directory" and path is not None:
        return path.expanduser().resolve().name
    return path.stem if source.kind == "gguf" and path is not None else source.name


def check_definition(definition: ModelDefinition) -> ModelSource:
    """Raise UsageError or CodemillError for what can be known to be wrong before anything is loaded."""
    source = resolve(definition.spec)
    if source.kind != "hub":  # nothing is downloaded just to look
        source.load_config()
    for name, directory in definition.adapters.items():
        if not (directory / "adapter_config.json").is_file():
            raise UsageError(
                f"adapter {name}: {directory} has no adapter_config.json; give the directory of an adapter"
            )
    return source
