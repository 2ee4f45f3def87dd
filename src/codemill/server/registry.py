"""Models and adapters by name, loaded when they are asked for. No torch here."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from codemill.engine.serving import ServingEngine
from codemill.errors import CodemillError, UsageError
from codemill.server.engine_pool import EnginePool, Load
from codemill.server.errors import ApiError
from codemill.server.model_entry import ModelDefinition, ModelEntry
from codemill.server.served_model import ModelCard, ServedModel

METRICS_SECONDS = 2.0  # an engine in a long step answers only after it
MOST_STRANGE_NAMES = 100
log = logging.getLogger("codemill.server")


@dataclass(frozen=True)
class Target:
    """What a name means: a model, or an adapter of it."""

    entry: ModelEntry
    adapter: str | None = None


class Registry:
    """The models that a server has. Exact names and aliases win; no name, None or "", is the first model.

    Any other name means the only model, if exactly one is served and no adapter, since clients are often configured
    with some name or other; not with `strict_names`. See `EnginePool` for the other arguments.
    """

    def __init__(
        self,
        definitions: Sequence[ModelDefinition],
        load: Load,
        *,
        max_loaded: int | None = None,
        idle_seconds: float | None = None,
        free: Callable[[], None] = lambda: None,
        is_lazy: bool = False,
        strict_names: bool = False,
    ) -> None:
        """Raises UsageError if two things have one name."""
        self._entries = [ModelEntry(definition) for definition in definitions]
        self._targets = _targets(self._entries)
        self._pool = EnginePool(load, max_loaded, idle_seconds, free)
        self._strict_names = strict_names
        self._is_lazy = is_lazy
        self._is_ready = False
        self._strange_names: set[str] = set()
        self._snapshots: dict[str, dict[str, Any]] = {}

    @classmethod
    def of(cls, engine: ServingEngine, name: str = "model", *, strict_names: bool = False) -> "Registry":
        """Serves one engine that exists already."""
        registry = cls([ModelDefinition(name)], _no_load, strict_names=strict_names)
        (entry,) = registry._entries
        entry.set_engine(engine)
        registry._pool.adopt(entry)
        registry._is_ready = True
        return registry

    @property
    def is_ready(self) -> bool:
        """Whether the server has started, and has not begun to shut down."""
        return self._is_ready

    @property
    def is_loading(self) -> bool:
        """Whether a thread loads a model."""
        return self._pool.is_loading

    def models(self) -> list[ModelCard]:
        """All names that requests may ask for: models, each with its aliases and adapters."""
        return [card for entry in self._entries for card in entry.cards()]

    async def start(self) -> None:
        """Load the first model and its adapters, unless the registry is lazy. Raises CodemillError if that fails."""
        if not self._is_lazy:
            for name in (None, *self._entries[0].definition.adapters):
                async with self.lease(name):
                    pass
        self._pool.start()
        self._is_ready = True

    def lease(self, name: str | None) -> "Lease":
        """`async with registry.lease(name) as model`: loaded as long as the context lasts, a ServedModel.

        Entering raises ApiError (404, `model_not_found`) for an unknown name, CodemillError if it cannot be loaded.
        """
        return Lease(self._pool, self._find(name))

    async def metrics(self) -> dict[str, dict[str, Any]]:
        """`EngineMetrics.snapshot` of each loaded engine by model name, the latest one of an engine that is busy."""
        entries = self._pool.loaded
        tasks = {entry.name: asyncio.ensure_future(entry.engine.metrics()) for entry in entries if entry.engine}
        if tasks:
            await asyncio.wait(tasks.values(), timeout=METRICS_SECONDS)
        self._snapshots = {name: snapshot for name in tasks if (snapshot := self._snapshot(name, tasks[name]))}
        return dict(self._snapshots)

    async def close(self, timeout: float = 30.0) -> None:
        """Close the engines: they finish what runs, and abort what is not done after `timeout` seconds."""
        self._is_ready = False
        await self._pool.close(timeout)

    def _snapshot(self, name: str, task: "asyncio.Task[dict[str, Any]]") -> dict[str, Any] | None:
        if not task.done():
            task.cancel()
        elif not task.cancelled() and not task.exception():
            return task.result()
        return self._snapshots.get(name)

    def _find(self, name: str | None) -> Target:
        target = self._targets.get(name) if name else Target(self._entries[0])
        if target is not None:
            return target
        if self._strict_names or len(self._entries) > 1 or self._entries[0].definition.adapters:
            raise model_not_found(name, list(self._targets))
        self._note_strange(str(name))
        return Target(self._entries[0])

    def _note_strange(self, name: str) -> None:
        if name not in self._strange_names and len(self._strange_names) < MOST_STRANGE_NAMES:
            self._strange_names.add(name)
            log.warning("no model is called %.100r: %s, the only one, answers", name, self._entries[0].name)


class Lease:
    """An asynchronous context in which a model is loaded."""

    __slots__ = ("_pool", "_target")

    def __init__(self, pool: EnginePool, target: Target) -> None:
        self._pool = pool
        self._target = target

    async def __aenter__(self) -> ServedModel:
        entry = self._target.entry
        await self._pool.acquire(entry)
        try:
            return await entry.serve(self._target.adapter)
        except BaseException:
            self._pool.release(entry)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.release(self._target.entry)


def model_not_found(name: str | None, known: Sequence[str]) -> ApiError:
    """The error of a request for a model that is not served."""
    return ApiError(404, f"no model is called {name!r:.200}: choose {', '.join(known)}", "model_not_found", "model")


def _targets(entries: Sequence[ModelEntry]) -> dict[str, Target]:
    if not entries:
        raise UsageError("no model to serve: name one")
    targets: dict[str, Target] = {}
    for entry in entries:
        definition = entry.definition
        named = {name: Target(entry) for name in (definition.name, *definition.aliases)}
        for name, target in [*named.items(), *((name, Target(entry, name)) for name in definition.adapters)]:
            if name in targets:
                raise UsageError(f"two models or adapters are called {name!r}: give each a name of its own")
            targets[name] = target
    return targets


def _no_load(definition: ModelDefinition) -> ServingEngine:
    raise CodemillError("this engine cannot be loaded again")
