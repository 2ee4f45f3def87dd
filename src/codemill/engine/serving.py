"""What a server needs of an engine, in this process or in others: `ServingEngine`. No torch here."""

import asyncio
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sized
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from codemill.chat.tokenizer import Tokenizer
from codemill.engine.admission import Admission
from codemill.engine.inbox import Inbox, deliver
from codemill.engine.outputs import RequestOutput
from codemill.engine.prompts import Prompt, parse_prompts
from codemill.engine.request import Request, RequestBuilder
from codemill.engine.sampling_params import SamplingParams
from codemill.engine.updates import Event, Progress, StreamUpdate
from codemill.errors import CodemillError, UsageError

if TYPE_CHECKING:
    from codemill.models.lora import LoraAdapter

PromptLike = str | SequenceOf[int] | Prompt
LONG_PROMPT = 4096  # characters or ids; a longer prompt takes too long to look at on an event loop


@dataclass(frozen=True)
class Submission:
    """What the caller asks besides prompt and params. deadline: seconds. wants_updates: not only the whole result.

    adapter: the name of one that was added.
    """

    request_id: str
    priority: int = 0
    deadline: float | None = None
    adapter: str | None = None
    wants_updates: bool = True


class ServingEngine(ABC):
    """Serves requests to any number of coroutines, in any number of event loops. See `AsyncEngine` and `Replicas`.

    At most `max_waiting` requests wait for a place; those beyond raise QueueFull at once. A request from which nothing
    was heard for `keep_alive` seconds repeats its progress, so that a server can keep its connection open.

    deadline: seconds after which a request ends with what it has: finish_reason "abort", stop_reason "deadline".
    priority: lower runs first. adapter: the name of one that was added. request_id: to abort it by; one is made up
    where none is given.
    """

    tokenizer: Tokenizer

    def __init__(self, builder: RequestBuilder, tokenizer: Tokenizer, admission: Admission, keep_alive: float) -> None:
        check_keep_alive(keep_alive)
        self.tokenizer = tokenizer
        self._builder = builder
        self._admission = admission
        self._keep_alive = keep_alive
        self._inboxes: dict[str, Inbox] = {}
        self._numbers = itertools.count()
        self._is_closed = False

    @property
    def max_model_len(self) -> int:
        """The context in tokens, prompt and answer together."""
        return self._builder.max_model_len

    @property
    def is_alive(self) -> bool:
        """Whether requests can be served: it was not closed, and what computes has not died."""
        return not self._is_closed

    @property
    def num_waiting(self) -> int:
        """Requests that have not begun."""
        return sum(inbox.is_waiting for inbox in list(self._inboxes.values()))

    def check_room(self) -> None:
        """Raise QueueFull if a request that came now would find no room."""
        num_waiting = self.num_waiting
        self._admission.check(num_waiting, len(self._inboxes) - num_waiting)

    async def stream(
        self,
        prompt: PromptLike,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        request_id: str | None = None,
        deadline: float | None = None,
        adapter: str | None = None,
    ) -> AsyncGenerator[StreamUpdate, None]:
        """Continue a prompt: updates of all its samples as they come; the last has the whole result.

        The first update is progress, and comes as soon as the request is accepted: what is wrong with it, UsageError or
        QueueFull, is raised before. Closing the iterator, or cancelling the task that reads it, aborts the request.
        Raises CodemillError later if the engine fails.
        """
        params = params or SamplingParams()
        if params.best_of is not None:
            raise UsageError("a stream cannot choose the best of several samples: leave best_of out, or call generate")
        with self._open(request_id) as inbox:
            submission = Submission(inbox.request_id, priority, _check_deadline(deadline), adapter)
            request = await self._begin(inbox, prompt, params, submission)
            inbox.progress = Progress(self.num_waiting - 1, 0, len(request.prompt.token_ids))
            yield StreamUpdate(progress=inbox.progress)
            while not inbox.is_read:
                yield await inbox.get(self._keep_alive)

    async def generate(
        self,
        prompt: PromptLike,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        request_id: str | None = None,
        deadline: float | None = None,
        adapter: str | None = None,
    ) -> RequestOutput:
        """Continue a prompt -> the whole result. Cancelling the task aborts the request; raises as `stream` does."""
        with self._open(request_id) as inbox:
            asked = inbox.request_id, priority, _check_deadline(deadline), adapter
            submission = Submission(*asked, wants_updates=False)
            await self._begin(inbox, prompt, params or SamplingParams(), submission)
            return await inbox.output()

    def abort(self, request_id: str) -> None:
        """End a request; its reader gets what it has, finish_reason "abort". Raises UsageError if none has that id."""
        inbox = self._inboxes.get(request_id)
        if inbox is None:
            raise UsageError(f"no request {request_id!r} is running")
        inbox.is_aborted = True
        self._abort(request_id)

    async def close(self, timeout: float = 30.0) -> None:
        """Take no more requests, finish those there are, abort what is not done after `timeout` seconds, and end."""
        await asyncio.to_thread(self.shutdown, timeout)

    def shutdown(self, timeout: float = 30.0) -> None:
        """`close`, for callers without an event loop; one that readers of requests run in must go on meanwhile."""
        self._is_closed = True
        self._shut_down(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    @abstractmethod
    async def metrics(self) -> dict[str, Any]:
        """See `EngineMetrics.snapshot`."""

    @abstractmethod
    async def update_weights(self, directory: str | Path) -> None:
        """Load other weights of the same network from a directory; requests that run go on with them.

        Raises UsageError if they are of another network, CodemillError if they cannot be read.
        """

    @abstractmethod
    async def add_adapter(self, name: str, directory: str | Path) -> None:
        """Load a LoRA adapter for requests to choose by `name`; see `LLM.add_adapter`."""

    @abstractmethod
    async def remove_adapter(self, name: str) -> None:
        """Forget an adapter. Raises UsageError if there is none of that name."""

    @abstractmethod
    async def sleep(self) -> None:
        """Free the memory of the KV cache until `wake`; requests wait."""

    @abstractmethod
    async def wake(self) -> None:
        """Be ready again after `sleep`."""

    @abstractmethod
    def _submit(self, request: Request, submission: Submission) -> None:
        """Have the request computed, and its events given to `_deliver`."""

    @abstractmethod
    def _abort(self, request_id: str) -> None:
        """Stop work on a request, if there is any."""

    @abstractmethod
    def _shut_down(self, timeout: float) -> None: ...

    @contextmanager
    def _open(self, request_id: str | None) -> Iterator[Inbox]:
        """An inbox for a new request, if there is room for it. Neither outlives the context."""
        self.check_room()
        with self._listen(request_id) as inbox:
            yield inbox

    @contextmanager
    def _listen(self, request_id: str | None = None) -> Iterator[Inbox]:
        name = request_id or f"request-{next(self._numbers)}"
        if self._is_closed:
            raise CodemillError("the engine is closed: start it anew")
        if name in self._inboxes:
            raise UsageError(f"request_id = {name!r}: a request of that id is running")
        inbox = self._inboxes[name] = Inbox(name)
        try:
            yield inbox
        finally:
            self._inboxes.pop(name, None)
            if not inbox.is_finished:
                self._abort(name)

    async def _begin(self, inbox: Inbox, prompt: PromptLike, params: SamplingParams, submission: Submission) -> Request:
        request = await self._prepare(prompt, params, submission)
        self._submit(request, submission)
        if inbox.is_aborted:  # while it was prepared
            self._abort(inbox.request_id)
        return request

    async def _prepare(self, prompt: PromptLike, params: SamplingParams, submission: Submission) -> Request:
        """The request, made where it does not hold up the event loop."""
        if _is_long(prompt) or params.structured_output is not None:
            return await asyncio.to_thread(self._build, prompt, params, submission)
        return self._build(prompt, params, submission)

    def _build(self, prompt: PromptLike, params: SamplingParams, submission: Submission) -> Request:
        if not isinstance(prompt, Prompt):
            (prompt,) = parse_prompts([prompt], self.tokenizer)
        adapter = self._find_adapter(submission.adapter)
        return self._builder.build(prompt, params, priority=submission.priority, adapter=adapter)

    def _find_adapter(self, name: str | None) -> "LoraAdapter | None":
        """The adapter of that name, where it is in this process. Raises UsageError if there is none."""
        return None

    def _deliver(self, events: list[Event]) -> None:
        """Give events to those who wait for them; called in the thread that has them."""
        letters = []
        for request_id, news in events:
            inbox = self._inboxes.get(request_id)
            if inbox is not None:  # somebody still listens
                letters.append((inbox, news))
            if isinstance(news, StreamUpdate) and news.output is not None:
                self._admission.note_finished(news.output.metrics)
        for inbox in deliver(letters):
            self._inboxes.pop(inbox.request_id, None)
            self._abort(inbox.request_id)


def _is_long(prompt: PromptLike) -> bool:
    content = prompt.token_ids if isinstance(prompt, Prompt) else prompt
    return isinstance(content, Sized) and len(content) > LONG_PROMPT


def _check_deadline(deadline: float | None) -> float | None:
    if deadline is not None and not (isinstance(deadline, int | float) and deadline > 0):
        raise UsageError(f"deadline = {deadline!r}: must be a number of seconds above 0")
    return deadline


def check_keep_alive(keep_alive: float) -> None:
    """Raise UsageError if that is no number of seconds."""
    is_number = isinstance(keep_alive, int | float) and not isinstance(keep_alive, bool)
    if not is_number or not 0 < keep_alive < math.inf:
        raise UsageError(f"keep_alive = {keep_alive!r}: must be a number of seconds above 0")
