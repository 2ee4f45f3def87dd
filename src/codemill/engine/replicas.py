"""`Replicas`: the same model in several processes, behind the interface of one engine. No torch here."""

import asyncio
import atexit
import threading
import time
from collections import Counter
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

from codemill.chat.tokenizer import Tokenizer
from codemill.engine.admission import Admission, check_max_waiting
from codemill.engine.metrics import merge
from codemill.engine.outputs import RequestOutput
from codemill.engine.prefix_hash import extend_hashes
from codemill.engine.prefix_router import PrefixRouter
from codemill.engine.prompts import parse_prompts
from codemill.engine.replica import GRACE_SECONDS, Replica
from codemill.engine.replica_messages import Abort, Close, ControlAction, ReplicaOptions, Submit
from codemill.engine.request import Request, RequestBuilder, params_for_each
from codemill.engine.sampling_params import SamplingParams
from codemill.engine.serving import PromptLike, ServingEngine, Submission, check_keep_alive
from codemill.engine.updates import Event
from codemill.errors import CodemillError, UsageError
from codemill.kernels.thread_count import default_threads


class Replicas(ServingEngine):
    """Data parallelism: `num_replicas` processes, each with an `LLM` of its own.

    A request goes to the replica that has most of its prompt in its prefix cache, unless that one is far busier than
    another. Its result does not depend on that: requests without a seed get theirs here, as they would from one `LLM`
    of the same `seed`. On the CPU weights of the checkpoint's own dtype are mapped from its file, so that the replicas
    share their memory, until `update_weights` gives each its own. The cache that one `LLM` would take is split among
    the replicas, unless `kv_cache_bytes` says how much each one gets; on a GPU it has to.

    A replica that dies fails the requests it had; it is replaced, `max_restarts` times in all. No replica outlives this
    process, however that ends.

    threads_per_replica: None splits the cores. llm_options: further arguments of `LLM`.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        num_replicas: int = 2,
        threads_per_replica: int | None = None,
        *,
        seed: int = 0,
        max_waiting: int | None = None,
        keep_alive: float = 10.0,
        max_restarts: int = 3,
        **llm_options: Any,
    ) -> None:
        """Start and wait until all are ready. Raises as `LLM` does."""
        check_max_waiting(max_waiting)
        check_keep_alive(keep_alive)
        num_threads = threads_per_replica or max(1, default_threads().count // max(1, num_replicas))
        if num_replicas < 1 or num_threads < 1:
            raise UsageError(f"num_replicas = {num_replicas}, threads_per_replica = {num_threads}: must be at least 1")
        self._options = ReplicaOptions(model, num_threads, num_replicas, llm_options)
        self._router = PrefixRouter(num_replicas)
        self._changing = threading.RLock()
        self._homes: dict[str, Replica] = {}
        self._restarts_left = 0  # one that does not even start would not do so the next time
        self._weights: Path | None = None
        self._adapters: dict[str, Path] = {}
        self._is_asleep = False
        self._replicas = [self._start(number) for number in range(num_replicas)]
        atexit.register(self.shutdown, 0.0)
        try:
            # Each plans its cache with the memory it finds, so that they may differ a little.
            ready = min((each.ready.result() for each in self._replicas), key=lambda ready: ready.max_model_len)
            tokenizer = Tokenizer.load(model)
            builder = RequestBuilder(ready.config, tokenizer, ready.generation_config, ready.max_model_len, seed)
        except BaseException:
            self.shutdown(0.0)
            raise
        super().__init__(builder, tokenizer, Admission(max_waiting, num_replicas * ready.max_num_seqs), keep_alive)
        self._block_size = ready.block_size
        self._restarts_left = max_restarts

    @property
    def is_alive(self) -> bool:
        has_any = self._restarts_left > 0 or not all(replica.has_ended for replica in self._replicas)
        return super().is_alive and has_any

    @property
    def process_ids(self) -> list[int | None]:
        """The process of each replica."""
        return [replica.process.pid for replica in self._replicas]

    def generate_all(
        self,
        prompts: str | SequenceOf[str] | SequenceOf[SequenceOf[int]],
        params: SamplingParams | SequenceOf[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """`LLM.generate`, spread over the replicas, whatever `max_waiting` is; for callers without an event loop."""
        parsed = parse_prompts(prompts, self.tokenizer)
        each = params_for_each(params, len(parsed))
        plain = Submission("", wants_updates=False)
        requests = [self._build(prompt, asked, plain) for prompt, asked in zip(parsed, each, strict=True)]
        return asyncio.run(self._complete_all(requests))

    async def metrics(self) -> dict[str, Any]:
        """`EngineMetrics.snapshot` of all replicas together; what one that died had counted is lost."""
        return merge(await self._control_all("metrics"))

    async def update_weights(self, directory: str | Path) -> None:
        before, self._weights = self._weights, Path(directory).absolute()
        try:
            await self._control_all("load_weights", self._weights)
        except UsageError:
            self._weights = before
            raise

    async def add_adapter(self, name: str, directory: str | Path) -> None:
        path = Path(directory).absolute()
        await self._control_all("add_adapter", path, name)
        self._adapters[name] = path

    async def remove_adapter(self, name: str) -> None:
        await self._control_all("remove_adapter", name=name)
        self._adapters.pop(name, None)

    async def sleep(self) -> None:
        self._is_asleep = True
        await self._control_all("sleep")

    async def wake(self) -> None:
        self._is_asleep = False
        await self._control_all("wake")

    async def _control_all(
        self, action: ControlAction, directory: Path | None = None, name: str | None = None
    ) -> list[Any]:
        replicas = [replica for replica in self._replicas if not replica.has_ended]
        futures = [replica.control(action, directory, name) for replica in replicas]
        return await asyncio.gather(*map(asyncio.wrap_future, futures))

    async def _complete_all(self, requests: list[Request]) -> list[RequestOutput]:
        return await asyncio.gather(*map(self._complete, requests))

    async def _complete(self, request: Request) -> RequestOutput:
        with self._listen() as inbox:
            self._submit(request, Submission(inbox.request_id, wants_updates=False))
            return await inbox.output()

    def _build(self, prompt: PromptLike, params: SamplingParams, submission: Submission) -> Request:
        request = super()._build(prompt, params, submission)
        # Here and not in `_submit`: hashing a long prompt would hold up the event loop.
        salt = (submission.adapter or "").encode()
        extend_hashes(request.sequences[0].cached.names, request.prompt.token_ids, self._block_size, salt)
        return request

    def _submit(self, request: Request, submission: Submission) -> None:
        seeds = [sequence.seed for sequence in request.sequences]
        with self._changing:
            replica = self._replicas[self._router.choose(request.sequences[0].cached.names, self._loads())]
            self._homes[submission.request_id] = replica
        replica.send(Submit(request.prompt, request.params, seeds, submission))

    def _loads(self) -> list[int | None]:
        """Unfinished requests of each replica that is ready, or if none is, of each that may become so."""
        counts = Counter(home.number for home in list(self._homes.values()))
        usable = [replica for replica in self._replicas if replica.is_ready]
        usable = usable or [replica for replica in self._replicas if not replica.has_ended]
        if not usable:
            raise CodemillError("all replicas have ended, and were restarted too often: start them anew")
        return [counts[replica.number] if replica in usable else None for replica in self._replicas]

    def _abort(self, request_id: str) -> None:
        home = self._homes.get(request_id)
        if home is not None:  # it stays there until the replica has said that it ended
            home.send(Abort(request_id))

    def _deliver(self, events: list[Event]) -> None:
        for request_id, news in events:
            if isinstance(news, CodemillError) or news.output is not None:
                self._homes.pop(request_id, None)
        super()._deliver(events)

    def _start(self, number: int) -> Replica:
        return Replica(number, self._options, self._deliver, self._replace)

    def _replace(self, dead: Replica) -> None:
        """A replica has ended: fail the requests that it had, and start another one in its place."""
        with self._changing:
            lost = [request_id for request_id, home in list(self._homes.items()) if home is dead]
        self._deliver([(request_id, CodemillError(dead.describe_end())) for request_id in lost])
        with self._changing:
            if self._restarts_left > 0:
                self._restarts_left -= 1
                self._router.forget(dead.number)
                self._replicas[dead.number] = self._start_like_others(dead.number)

    def _start_like_others(self, number: int) -> Replica:
        """A new replica, brought to where the others are before it is given any request."""
        replica = self._start(number)
        if self._weights is not None:
            loaded = replica.control("load_weights", self._weights)
            loaded.add_done_callback(lambda done: replica.process.kill() if done.exception() else None)
        for name, directory in self._adapters.items():
            replica.control("add_adapter", directory, name)
        if self._is_asleep:
            replica.control("sleep")
        return replica

    def _shut_down(self, timeout: float) -> None:
        atexit.unregister(self.shutdown)
        with self._changing:
            self._restarts_left = 0
        until = time.monotonic() + timeout + GRACE_SECONDS
        for replica in self._replicas:
            replica.send(Close(timeout))
        for replica in self._replicas:
            replica.join(max(0.0, until - time.monotonic()))
