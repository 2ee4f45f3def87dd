"""One model of the registry, loaded or not. No torch here."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from codemill.engine.serving import ServingEngine
from codemill.errors import CodemillError
from codemill.server.served_model import CallStyle, ModelCard, ServedModel


@dataclass(frozen=True)
class ModelDefinition:
    """A model that is to be served.

    aliases: further names of it. adapters: LoRA directories by name. options: arguments of `LLM` for this model alone.
    """

    name: str
    spec: str | None = None
    aliases: tuple[str, ...] = ()
    adapters: Mapping[str, Path] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


class ModelEntry:
    """A model, its engine while it is loaded, and who uses it; belongs to one event loop.

    num_leases: requests that use the engine. num_waiting: those that wait for it. is_leaving: another model needs its
    place, so that no lease is given any more.
    """

    def __init__(self, definition: ModelDefinition, engine: ServingEngine | None = None) -> None:
        self.definition = definition
        self.created = int(time.time())
        self.num_leases = self.num_waiting = 0
        self.is_leaving = False
        self.last_used = time.monotonic()
        self.loading: asyncio.Task[None] | None = None
        self._adapters: dict[str, asyncio.Task[None]] = {}
        self._served: dict[str | None, ServedModel] = {}
        self.engine: ServingEngine | None = None
        if engine is not None:
            self.set_engine(engine)

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def is_usable(self) -> bool:
        """Whether a lease can be given at once."""
        return self.engine is not None and not self.is_leaving and self.engine.is_alive

    @property
    def has_dead_engine(self) -> bool:
        """Whether the engine has ended by an error of its own."""
        return self.engine is not None and not self.engine.is_alive

    @property
    def is_idle(self) -> bool:
        """Whether the engine may be closed: nobody uses it, or is about to."""
        return not self.num_leases and (self.is_leaving or not self.num_waiting)

    def cards(self) -> list[ModelCard]:
        """The model, its other names and its adapters."""
        spec = self.definition.spec or "embedded"
        own = self._card(self.name, spec)
        aliases = [replace(own, name=name, alias_of=self.name) for name in self.definition.aliases]
        adapters = self.definition.adapters.items()
        return [own, *aliases, *(self._card(name, str(directory), self.name) for name, directory in adapters)]

    def _card(self, name: str, spec: str, parent: str | None = None) -> ModelCard:
        engine = self.engine
        max_model_len = None if engine is None else engine.max_model_len
        return ModelCard(name, self.created, engine is not None, parent, max_model_len, spec)

    def set_engine(self, engine: ServingEngine) -> None:
        self.engine, self.is_leaving = engine, False
        self.last_used = time.monotonic()
        style = call_style(engine)
        names = {None: self.name} | {name: name for name in self.definition.adapters}
        self._served = {
            adapter: ServedModel(name, engine, adapter, self.created, style) for adapter, name in names.items()
        }

    def take_engine(self) -> ServingEngine:
        """The engine, which the entry forgets."""
        assert self.engine is not None
        engine, self.engine, self.is_leaving = self.engine, None, False
        self._served, self._adapters = {}, {}
        return engine

    async def serve(self, adapter: str | None) -> ServedModel:
        """What a request gets; the engine is loaded. Loads the adapter if that is not done yet."""
        if adapter is not None:
            await self._add_adapter(adapter)
        return self._served[adapter]

    async def _add_adapter(self, name: str) -> None:
        """Have the engine load it, once however many ask for it; one that fails may be tried again."""
        assert self.engine is not None
        task = self._adapters.get(name)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = asyncio.ensure_future(_load_adapter(self.engine, name, self.definition.adapters[name]))
            self._adapters[name] = task
        if not task.done():
            await asyncio.shield(task)
        task.result()


async def _load_adapter(engine: ServingEngine, name: str, directory: Path) -> None:
    """Raises CodemillError: whoever asks for an adapter did nothing wrong if it does not fit."""
    try:
        await engine.add_adapter(name, directory)
    except CodemillError as error:  # a UsageError is one too
        raise CodemillError(f"the adapter {name} cannot be loaded: {error}") from error


def call_style(engine: ServingEngine) -> CallStyle:
    return engine.tokenizer.call_style
