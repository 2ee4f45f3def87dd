"""`LLM`: a model, its tokenizer and its defaults behind four calls: generate, chat, stream, stream_chat."""

import time
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any, cast

import torch

from codemill.chat.tokenizer import Tokenizer
from codemill.config import ModelConfig
from codemill.engine.batch import Batch, plan_batches
from codemill.engine.generation_config import GenerationConfig
from codemill.engine.outputs import RequestOutput, StreamPiece
from codemill.engine.prompts import Prompt, parse_prompts
from codemill.engine.request import Request, RequestBuilder, context_length, params_for_each
from codemill.engine.sampling_params import SamplingParams
from codemill.errors import UsageError
from codemill.kernels.heap import keep_freed_memory
from codemill.models import CausalLM, load_model
from codemill.models.loader import CONFIG_FILES
from codemill.spec import ModelSource, resolve

Message = Mapping[str, Any]
Conversation = SequenceOf[Message]


class LLM:
    """Text generation with one model.

    model: a model spec (None for the embedded model, a directory, a hub id, `random:PRESET`). dtype, device: "auto"
    for the checkpoint's own, and a GPU where there is one. max_model_len: the context in tokens, prompt and answer
    together; None for all that the model has. seed: where requests without a seed of their own get theirs from.

    Requests run in batches of at most 16 sequences whose KV caches take at most 2 GiB; the rest waits. Calls do not
    share state, so a call that was interrupted leaves nothing behind.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        quantization: str | None = None,
        max_model_len: int | None = None,
        seed: int = 0,
    ) -> None:
        """Load it all. Raises UsageError for wrong arguments, CodemillError if the checkpoint cannot be loaded."""
        if quantization is not None:
            raise UsageError(f"quantization = {quantization!r} is not supported yet: only None is")
        config, defaults = _read_configs(resolve(model))
        context_length(config, max_model_len)  # before the weights, which may take long
        tokenizer = Tokenizer.load(model)
        self._set_up(load_model(model, dtype, device), tokenizer, defaults, max_model_len, seed)

    @classmethod
    def from_parts(
        cls,
        model: CausalLM,
        tokenizer: Tokenizer,
        generation_config: GenerationConfig | None = None,
        max_model_len: int | None = None,
        seed: int = 0,
    ) -> "LLM":
        """An LLM of a model and a tokenizer that are already in memory, such as those of a training run."""
        llm = cls.__new__(cls)
        llm._set_up(model, tokenizer, generation_config or GenerationConfig(), max_model_len, seed)
        return llm

    def _set_up(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        generation_config: GenerationConfig,
        max_model_len: int | None,
        seed: int,
    ) -> None:
        keep_freed_memory()
        self.model = model
        self.tokenizer = tokenizer
        self.generation_config = generation_config
        self._builder = RequestBuilder(model.config, tokenizer, generation_config, max_model_len, seed)

    @property
    def max_model_len(self) -> int:
        """The context in tokens, prompt and answer together."""
        return self._builder.max_model_len

    def generate(
        self,
        prompts: str | SequenceOf[str] | SequenceOf[SequenceOf[int]],
        params: SamplingParams | SequenceOf[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Continue each prompt: a text, a list of texts, or a list of token id lists -> one output for each, in order.

        `params` holds for all prompts, or is a list with one for each. Control tokens such as `<|im_start|>` in a
        text prompt are encoded as text; give ids where they are meant. Raises UsageError for a prompt that is empty,
        does not fit the context or has ids outside the vocabulary, CodemillError if the model produces NaN.
        """
        return self._run(parse_prompts(prompts, self.tokenizer), params)

    def chat(
        self,
        messages: Conversation | SequenceOf[Conversation],
        params: SamplingParams | SequenceOf[SamplingParams] | None = None,
        tools: SequenceOf[Mapping[str, Any]] | None = None,
        **template_kwargs: Any,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of a list of them -> one output for each, as a list in both cases.

        `template_kwargs` are variables of the chat template, such as `enable_thinking=False`. Raises as `generate`
        does, and UsageError for a malformed message.
        """
        prompts = [self._chat_prompt(each, tools, template_kwargs) for each in _conversations(messages)]
        return self._run(prompts, params)

    def stream(self, prompt: str | SequenceOf[int], params: SamplingParams | None = None) -> Iterator[StreamPiece]:
        """Continue one prompt, a text or a list of ids, piece by piece; the pieces join to the text of `generate`.

        No piece ends inside a character or with what may become a stop string. Raises at once as `generate` does.
        """
        return self._stream(parse_prompts([prompt], self.tokenizer)[0], params)

    def stream_chat(
        self,
        messages: Conversation,
        params: SamplingParams | None = None,
        tools: SequenceOf[Mapping[str, Any]] | None = None,
        **template_kwargs: Any,
    ) -> Iterator[StreamPiece]:
        """Answer one conversation piece by piece; see `stream` and `chat`."""
        return self._stream(self._chat_prompt(messages, tools, template_kwargs), params)

    def _chat_prompt(
        self, messages: Conversation, tools: SequenceOf[Mapping[str, Any]] | None, template_kwargs: Mapping[str, Any]
    ) -> Prompt:
        text = self.tokenizer.render(messages, tools, **template_kwargs)
        return Prompt(text, tuple(self.tokenizer.encode_chat(messages, tools, **template_kwargs)))

    def _run(
        self, prompts: list[Prompt], params: SamplingParams | SequenceOf[SamplingParams] | None
    ) -> list[RequestOutput]:
        start = time.perf_counter()
        names = ["the prompt"] if len(prompts) == 1 else [f"prompts[{i}]" for i in range(len(prompts))]
        each = params_for_each(params, len(prompts))
        requests = [self._builder.build(*parts) for parts in zip(prompts, each, names, strict=True)]
        for batch in plan_batches(self.model, [sequence for request in requests for sequence in request.sequences]):
            Batch(self.model, batch).run()
        return [request.output(start) for request in requests]

    def _stream(self, prompt: Prompt, params: SamplingParams | None) -> Iterator[StreamPiece]:
        (params,) = params_for_each(params, 1)
        if params.n != 1:
            raise UsageError(f"n = {params.n}: a stream has one sample; call generate for several")
        request = self._builder.build(prompt, params)
        return _pieces(Batch(self.model, request.sequences), request)


def _read_configs(source: ModelSource) -> tuple[ModelConfig, GenerationConfig]:
    if source.preset is not None:
        return source.preset.config, GenerationConfig()
    directory = source.fetch(CONFIG_FILES)
    return ModelConfig.load(directory), GenerationConfig.load(directory)


def _pieces(batch: Batch, request: Request) -> Iterator[StreamPiece]:
    (sequence,) = request.sequences
    start = time.perf_counter()
    num_pieces = num_tokens = 0
    while sequence.finish_reason is None:
        batch.step()
        text = "".join(sequence.text_pieces[num_pieces:])
        if text or sequence.finish_reason is not None:
            token_ids = tuple(sequence.token_ids[num_tokens:])
            num_pieces, num_tokens = len(sequence.text_pieces), len(sequence.token_ids)
            metrics = None if sequence.finish_reason is None else request.metrics(start)
            yield StreamPiece(text, token_ids, sequence.finish_reason, sequence.stop_reason, metrics)


def _conversations(messages: Conversation | SequenceOf[Conversation]) -> list[Conversation]:
    """A list of conversations, whether one was given or several."""
    if isinstance(messages, SequenceOf) and messages and not isinstance(messages[0], Mapping):
        return cast("list[Conversation]", list(messages))
    return [cast("Conversation", messages)]
