"""The engines that are loaded: when they are asked for, until they are no longer used. No torch here."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from codemill.engine.serving import ServingEngine
from codemill.errors import CodemillError
from codemill.server.errors import ApiError
from codemill.server.model_entry import ModelDefinition, ModelEntry

Load = Callable[[ModelDefinition], ServingEngine]
PATIENCE = 30.0  # seconds that a model waits for a place before the one that was used least recently has to leave
log = logging.getLogger("codemill.server")


class EnginePool:
    """At most `max_loaded` engines at a time (None: no bound); one that nobody uses for `idle_seconds` is closed.

    load: makes the engine of a model, and blocks for as long as that takes. free: called in a thread after an
    engine was closed. They load one after another, since each plans its cache with the memory that it finds.
    """

    def __init__(
        self,
        load: Load,
        max_loaded: int | None = None,
        idle_seconds: float | None = None,
        free: Callable[[], None] = lambda: None,
    ) -> None:
        self._load_engine = load
        self._max_loaded = max_loaded
        self._idle_seconds = idle_seconds
        self._free = free
        self._loaded: list[ModelEntry] = []
        self._turn = asyncio.Lock()
        self._released = asyncio.Event()
        self._reaper: asyncio.Task[None] | None = None
        self._loads: set[asyncio.Task[None]] = set()
        self._num_load_threads = 0
        self._is_started = self._is_closed = False

    @property
    def is_loading(self) -> bool:
        """Whether a thread loads a model, perhaps one that nobody waits for any more."""
        return self._num_load_threads > 0

    @property
    def loaded(self) -> list[ModelEntry]:
        return list(self._loaded)

    def adopt(self, entry: ModelEntry) -> None:
        """Keep an entry that has its engine already."""
        self._loaded.append(entry)

    def start(self) -> None:
        """Begin to watch for engines that nobody uses, and to log what cannot be loaded."""
        self._is_started = True
        if self._idle_seconds is not None and self._reaper is None:
            self._reaper = asyncio.create_task(self._reap(self._idle_seconds))

    async def acquire(self, entry: ModelEntry) -> None:
        """Take a lease; the engine is loaded if need be. Raises CodemillError, for all who wait, if it cannot be."""
        if not entry.is_usable:
            await self._wait_for(entry)
        entry.num_leases += 1

    def release(self, entry: ModelEntry) -> None:
        """Give a lease back."""
        entry.num_leases -= 1
        entry.last_used = time.monotonic()
        if not entry.num_leases:
            self._released.set()

    async def close(self, timeout: float) -> None:
        """Close all engines: they finish what runs, and abort it after `timeout` seconds. No other is loaded."""
        self._is_closed = True
        for task in [*self._loads, *([self._reaper] if self._reaper else [])]:
            task.cancel()
        engines = [entry.engine for entry in self._loaded if entry.engine is not None]
        await asyncio.gather(*[engine.close(timeout) for engine in engines])

    async def _wait_for(self, entry: ModelEntry) -> None:
        entry.num_waiting += 1
        try:
            while not entry.is_usable:
                await self._join_load(entry)
        finally:
            entry.num_waiting -= 1
            self._released.set()

    async def _join_load(self, entry: ModelEntry) -> None:
        """Wait until the entry is loaded; who leaves does not stop that."""
        self._check_open()
        if entry.loading is None:
            entry.loading = asyncio.create_task(self._load(entry))
            self._loads.add(entry.loading)
            entry.loading.add_done_callback(self._settle)
        load = entry.loading
        try:
            await asyncio.shield(load)
        except asyncio.CancelledError:
            if load.cancelled():
                self._check_open()
            raise

    def _settle(self, load: "asyncio.Task[None]") -> None:
        self._loads.discard(load)
        if not load.cancelled():
            load.exception()  # those who waited have seen it, and if all have left, nobody need

    async def _load(self, entry: ModelEntry) -> None:
        try:
            async with self._turn:
                if entry.has_dead_engine:
                    await self._unload(entry, "its engine has died")
                if not entry.is_usable:
                    await self._make_room()
                    await self._start(entry)
        finally:
            entry.loading = None

    async def _start(self, entry: ModelEntry) -> None:
        self._check_open()
        begin = time.monotonic()
        log.info("model %s is loading", entry.name)
        try:
            engine = await self._load_in_thread(entry.definition)
        except Exception as error:
            is_known = isinstance(error, CodemillError)
            reason = str(error) if is_known else f"{type(error).__name__}: {error}"
            if self._is_started:  # before, whoever starts the server is told
                log.error("model %s cannot be loaded: %s", entry.name, reason, exc_info=None if is_known else error)
            raise CodemillError(f"the model {entry.name} cannot be loaded: {reason}") from error
        entry.set_engine(engine)
        self._loaded.append(entry)
        log.info("model %s loaded in %.1f s", entry.name, time.monotonic() - begin)

    async def _load_in_thread(self, definition: ModelDefinition) -> ServingEngine:
        """Not in one of asyncio's threads, for which a process waits before it ends."""
        future: Future[ServingEngine] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                future.set_result(self._load_engine(definition))
            except BaseException as error:  # noqa: BLE001 - it belongs to those who wait
                future.set_exception(error)
            finally:
                self._num_load_threads -= 1

        self._num_load_threads += 1
        threading.Thread(target=run, name="codemill-load", daemon=True).start()
        return await asyncio.wrap_future(future)

    async def _make_room(self) -> None:
        """Close engines until there is a place for another one."""
        until = time.monotonic() + PATIENCE
        while self._max_loaded is not None and len(self._loaded) >= self._max_loaded:
            self._check_open()
            idle = [entry for entry in self._loaded if entry.is_idle]
            if idle:
                await self._unload(min(idle, key=_last_used), "another model needs its place")
            elif not await self._wait_for_release(until - time.monotonic()):
                min(self._loaded, key=_last_used).is_leaving = True
        for entry in self._loaded:  # another one left in its stead
            entry.is_leaving = False

    async def _wait_for_release(self, seconds: float) -> bool:
        self._released.clear()
        try:
            await asyncio.wait_for(self._released.wait(), seconds if seconds > 0 else None)
        except TimeoutError:
            return False
        return True

    async def _reap(self, idle_seconds: float) -> None:
        while True:
            await asyncio.sleep(min(30.0, idle_seconds / 8))
            async with self._turn:
                due = time.monotonic() - idle_seconds
                for entry in self.loaded:
                    if entry.is_idle and entry.last_used <= due:
                        await self._unload(entry, f"nobody asked for it for {idle_seconds:g} s")

    async def _unload(self, entry: ModelEntry, reason: str) -> None:
        self._loaded.remove(entry)
        engine = entry.take_engine()
        try:
            await engine.close(0.0)
        except Exception:  # its memory may be lost, but the others go on
            log.exception("model %s did not close properly", entry.name)
        del engine
        await asyncio.to_thread(self._free)
        log.info("model %s unloaded: %s", entry.name, reason)

    def _check_open(self) -> None:
        if self._is_closed:
            message = "the server is shutting down: send the request again later"
            raise ApiError(503, message, "unavailable", headers={"Retry-After": "5"})


def _last_used(entry: ModelEntry) -> float:
    return entry.last_used
