"""`LLM`: a model, its tokenizer and its defaults behind four calls: generate, chat, stream, stream_chat."""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from codemill.chat.tokenizer import Tokenizer
from codemill.config import ModelConfig
from codemill.engine.adapters import AdapterChoice, Adapters
from codemill.engine.build import DraftNetwork, build_engine, load_draft
from codemill.engine.generation_config import GenerationConfig
from codemill.engine.outputs import RequestOutput, StreamPiece
from codemill.engine.prompts import Prompt, parse_prompts
from codemill.engine.request import Request, RequestBuilder, context_length, params_for_each
from codemill.engine.sampling_params import SamplingParams
from codemill.engine.stream_reader import StreamReader
from codemill.engine_config import EngineConfig
from codemill.errors import UsageError
from codemill.kernels.heap import keep_freed_memory
from codemill.models import CausalLM, load_model
from codemill.models.update import update_weights
from codemill.spec import ModelSource, resolve

Message = Mapping[str, Any]
Conversation = SequenceOf[Message]


class LLM:
    """Text generation with one model.

    model: a model spec (None for the embedded model, a directory, a hub id, `random:PRESET`). dtype, device: "auto"
    for the checkpoint's own, and a GPU where there is one. max_model_len: the context in tokens, prompt and answer
    together; None for all that the model has, as far as the memory for its KV cache reaches. quantization: "int4" or
    "int8" packs the weights while they are loaded, see `load_model`. seed: where requests
    without a seed of their own get theirs from. Further keyword arguments are those of `EngineConfig`.

    All calls share one engine, and so its prefix cache. They may come from several threads; a call that was
    interrupted leaves nothing behind.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        quantization: str | None = None,
        max_model_len: int | None = None,
        seed: int = 0,
        **engine_options: Any,
    ) -> None:
        """Load it all. Raises UsageError for wrong arguments, CodemillError if the checkpoint cannot be loaded."""
        engine_config = EngineConfig.from_options(engine_options)
        config, defaults = _read_configs(resolve(model))
        context_length(config, max_model_len)  # before the weights, which may take long
        tokenizer = Tokenizer.load(model)
        network = load_model(model, dtype, device, quantization=quantization)
        draft = load_draft(engine_config, model, network)
        self._set_up(network, tokenizer, defaults, max_model_len, seed, engine_config, draft)

    @classmethod
    def from_parts(
        cls,
        model: CausalLM,
        tokenizer: Tokenizer,
        generation_config: GenerationConfig | None = None,
        max_model_len: int | None = None,
        seed: int = 0,
        draft: DraftNetwork | None = None,
        **engine_options: Any,
    ) -> "LLM":
        """An LLM of a model and a tokenizer that are already in memory, such as those of a training run.

        draft: the network that drafts, where the settings ask for one.
        """
        llm = cls.__new__(cls)
        engine_config = EngineConfig.from_options(engine_options)
        draft = draft or load_draft(engine_config, None, model)
        defaults = generation_config or GenerationConfig()
        llm._set_up(model, tokenizer, defaults, max_model_len, seed, engine_config, draft)
        return llm

    def _set_up(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        generation_config: GenerationConfig,
        max_model_len: int | None,
        seed: int,
        engine_config: EngineConfig,
        draft: DraftNetwork | None,
    ) -> None:
        keep_freed_memory()
        self.model = model
        self.tokenizer = tokenizer
        self.generation_config = generation_config
        built = build_engine(model, engine_config, max_model_len, draft)
        self.engine = built.engine
        self.adapters = Adapters(model)
        self.builder = RequestBuilder(model.config, tokenizer, generation_config, built.max_model_len, seed)
        self.lock = threading.RLock()
        weakref.finalize(self, self.engine.close)  # also when the program ends: prompts may be on their way to disk

    @property
    def max_model_len(self) -> int:
        """The context in tokens, prompt and answer together."""
        return self.builder.max_model_len

    def generate(
        self,
        prompts: str | SequenceOf[str] | SequenceOf[SequenceOf[int]],
        params: SamplingParams | SequenceOf[SamplingParams] | None = None,
        adapter: AdapterChoice = None,
    ) -> list[RequestOutput]:
        """Continue each prompt: a text, a list of texts, or a list of token id lists -> one output for each, in order.

        `params` and `adapter` (a name from `add_adapter`) hold for all prompts, or are lists with one for each. Control
        tokens such as `<|im_start|>` in a text prompt are encoded as text; give ids where they are meant. Raises
        UsageError for a prompt that is empty, does not fit the context or has ids outside the vocabulary,
        CodemillError if the model produces NaN.
        """
        return self._run(parse_prompts(prompts, self.tokenizer), params, adapter)

    def chat(
        self,
        messages: Conversation | SequenceOf[Conversation],
        params: SamplingParams | SequenceOf[SamplingParams] | None = None,
        tools: SequenceOf[Mapping[str, Any]] | None = None,
        adapter: AdapterChoice = None,
        **template_kwargs: Any,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of a list of them -> one output for each, as a list in both cases.

        `template_kwargs` are variables of the chat template, such as `enable_thinking=False`. Raises as `generate`
        does, and UsageError for a malformed message.
        """
        prompts = [self._chat_prompt(each, tools, template_kwargs) for each in _conversations(messages)]
        return self._run(prompts, params, adapter)

    def stream(
        self, prompt: str | SequenceOf[int], params: SamplingParams | None = None, adapter: str | None = None
    ) -> Iterator[StreamPiece]:
        """Continue one prompt, a text or a list of ids, piece by piece; the pieces join to the text of `generate`.

        No piece ends inside a character or with what may become a stop string. Raises at once as `generate` does.
        """
        return self._stream(parse_prompts([prompt], self.tokenizer)[0], params, adapter)

    def stream_chat(
        self,
        messages: Conversation,
        params: SamplingParams | None = None,
        tools: SequenceOf[Mapping[str, Any]] | None = None,
        adapter: str | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        **template_kwargs: Any,
    ) -> Iterator[StreamPiece]:
        """Answer one conversation piece by piece; see `stream` and `chat`.

        on_progress: called after each pass over a part of the prompt, with the tokens that are done and those of all;
        what it raises ends the request.
        """
        return self._stream(self._chat_prompt(messages, tools, template_kwargs), params, adapter, on_progress)

    def add_adapter(self, name: str, directory: str | Path) -> None:
        """Load a LoRA adapter that PEFT saved, for requests to choose by `name`.

        Raises UsageError for an empty name, CodemillError naming the file for what cannot be loaded.
        """
        with self.lock:
            self.engine.check_open()
            self.adapters.add(name, directory)

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter; requests that run with it go on. Raises UsageError if there is none of that name."""
        with self.lock:
            self.engine.check_open()
            self.adapters.remove(name)

    def update_weights(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put new weights into the model, between two steps; requests that run go on with them from where they are.

        Names are those of the parameters or those on disk; what `state` lacks stays as it is. All that was cached is
        dropped. Raises UsageError for a name or shape that the model does not have; nothing is changed then. After
        any other error some weights may be new and others old: call it again.
        """
        with self.lock:
            self.engine.check_open()
            may_differ = True
            try:
                update_weights(self.model, state)
            except UsageError:
                may_differ = False
                raise
            finally:  # some weights are new also where copying them failed half-way
                if may_differ:
                    self.engine.weights_changed()

    def sleep(self) -> None:
        """Free the memory of the KV cache, and with it the prefix cache, until `wake`; the weights stay."""
        with self.lock:
            self.engine.sleep()

    def wake(self) -> None:
        """Be ready again after `sleep`."""
        with self.lock:
            self.engine.wake()

    def close(self) -> None:
        """Finish writing the prefix cache on disk, if there is one. Whatever is asked afterwards raises UsageError."""
        with self.lock:
            self.engine.close()

    @property
    def metrics(self) -> dict[str, Any]:
        """Counts and times since the start: requests, tokens, queue, TTFT, TPOT, cache hits, accepted drafts."""
        with self.lock:
            self.engine.settle()
            return self.engine.metrics.snapshot()

    def _chat_prompt(
        self, messages: Conversation, tools: SequenceOf[Mapping[str, Any]] | None, template_kwargs: Mapping[str, Any]
    ) -> Prompt:
        text = self.tokenizer.render(messages, tools, **template_kwargs)
        return Prompt(text, tuple(self.tokenizer.encode_chat(messages, tools, **template_kwargs)))

    def _run(
        self,
        prompts: list[Prompt],
        params: SamplingParams | SequenceOf[SamplingParams] | None,
        adapter: AdapterChoice,
    ) -> list[RequestOutput]:
        self.engine.check_open()
        names = ["the prompt"] if len(prompts) == 1 else [f"prompts[{i}]" for i in range(len(prompts))]
        each, adapters = params_for_each(params, len(prompts)), self.adapters.for_each(adapter, len(prompts))
        requests = [
            self.builder.build(prompt, asked, name, adapter=chosen)
            for prompt, asked, name, chosen in zip(prompts, each, names, adapters, strict=True)
        ]
        with self._serving(requests):
            for request in requests:
                while not request.is_finished:
                    self._step()
                request.raise_error()
        return [request.output() for request in requests]

    def _stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        adapter: str | None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[StreamPiece]:
        self.engine.check_open()
        (params,) = params_for_each(params, 1)
        if params.n != 1 or params.best_of is not None:
            raise UsageError("a stream has one sample: leave n at 1 and best_of out, or call generate")
        return self._pieces(self.builder.build(prompt, params, adapter=self.adapters.get(adapter)), on_progress)

    def _pieces(self, request: Request, on_progress: Callable[[int, int], None] | None = None) -> Iterator[StreamPiece]:
        reader = StreamReader(request)
        sequence = request.sequences[0]
        with self._serving([request]):
            while not reader.is_done:
                with self.lock:
                    if not reader.has_news:  # another caller's step may have brought some
                        self.engine.step()
                    piece = reader.read()
                if piece is not None:
                    yield piece
                elif on_progress is not None and not sequence.token_ids:
                    on_progress(sequence.cached.num_computed, len(sequence.prompt_token_ids))

    @contextmanager
    def _serving(self, requests: list[Request]) -> Iterator[None]:
        """The engine works on the requests, and no longer than the context lasts."""
        try:
            with self.lock:
                for request in requests:
                    self.engine.add(request)
            yield
        finally:
            # Not a plain abort: a forgotten stream is closed by the garbage collector, perhaps in the middle of a step.
            for request in requests:
                self.engine.abort_soon(request)
            if self.lock.acquire(blocking=False):  # else the holder's step does it
                try:
                    self.engine.settle()
                finally:
                    self.lock.release()

    def _step(self) -> None:
        with self.lock:
            self.engine.step()


def _read_configs(source: ModelSource) -> tuple[ModelConfig, GenerationConfig]:
    return source.load_config(), GenerationConfig.from_dict(*source.load_generation_config())


def _conversations(messages: Conversation | SequenceOf[Conversation]) -> list[Conversation]:
    """A list of conversations, whether one was given or several."""
    if isinstance(messages, SequenceOf) and messages and not isinstance(messages[0], Mapping):
        return cast("list[Conversation]", list(messages))
    return [cast("Conversation", messages)]
