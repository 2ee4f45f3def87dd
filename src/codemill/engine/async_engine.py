"""`AsyncEngine`: an `LLM` for many coroutines at once, stepped by a thread of its own."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from codemill.engine.admission import Admission
from codemill.engine.engine_loop import EngineLoop
from codemill.engine.llm import LLM
from codemill.engine.request import Request
from codemill.engine.serving import ServingEngine, Submission
from codemill.errors import CodemillError
from codemill.models import load_model
from codemill.models.lora import LoraAdapter

T = TypeVar("T")


class AsyncEngine(ServingEngine):
    """Serves an `LLM` in this process.

    The thread sleeps while there is nothing to compute. A step that fails ends the requests that had begun with a
    CodemillError each; later ones are served. `close` it before the `LLM` is used directly again; in between, `call`
    reaches it.
    """

    def __init__(self, llm: LLM, *, max_waiting: int | None = None, keep_alive: float = 10.0) -> None:
        llm.engine.check_open()
        admission = Admission(max_waiting, llm.engine.cache.shape.max_num_seqs)
        super().__init__(llm.builder, llm.tokenizer, admission, keep_alive)
        self._adapters = llm.adapters
        self._loop = EngineLoop(llm, self._deliver)

    @property
    def is_alive(self) -> bool:
        return super().is_alive and self._loop.is_alive

    async def call(self, function: Callable[[LLM], T]) -> T:
        """Call `function` with the `LLM` in the engine's thread, between two steps -> its result, or what it raises."""
        return await asyncio.wrap_future(self._loop.call(function))

    async def metrics(self) -> dict[str, Any]:
        return await self.call(lambda llm: llm.metrics)

    async def update_weights(self, directory: str | Path) -> None:
        await self.call(partial(load_weights, directory))

    async def add_adapter(self, name: str, directory: str | Path) -> None:
        await self.call(lambda llm: llm.add_adapter(name, directory))

    async def remove_adapter(self, name: str) -> None:
        await self.call(lambda llm: llm.remove_adapter(name))

    async def sleep(self) -> None:
        await asyncio.wrap_future(self._loop.sleep())

    async def wake(self) -> None:
        await asyncio.wrap_future(self._loop.wake())

    def _find_adapter(self, name: str | None) -> LoraAdapter | None:
        return self._adapters.get(name)

    def _submit(self, request: Request, submission: Submission) -> None:
        self._loop.submit(submission.request_id, request, submission.deadline, submission.wants_updates)

    def _abort(self, request_id: str) -> None:
        with suppress(CodemillError):  # the loop has ended, and with it the request
            self._loop.abort(request_id)

    def _shut_down(self, timeout: float) -> None:
        self._loop.close(timeout)


def load_weights(directory: str | Path, llm: LLM) -> None:
    """Put the weights of a model directory into the network of `llm`. See `ServingEngine.update_weights`."""
    fresh = load_model(directory, llm.model.dtype)
    llm.update_weights(dict(fresh.named_parameters()))
