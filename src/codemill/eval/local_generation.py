"""A model in this process, asked in batches through `codemill.engine.llm`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.chat.completion import Cursor, completion_prompt
from codemill.chat.prompts import fim_ids
from codemill.chat.reasoning import OPEN
from codemill.errors import UsageError
from codemill.eval.generation import Generated, GenerationRequest, Sampling
from codemill.eval.request import LocalModel
from codemill.spec import resolve

if TYPE_CHECKING:
    from codemill.engine.llm import LLM
    from codemill.engine.sampling_params import SamplingParams

BATCH = 64  # requests handed to the engine at a time: enough to keep it busy, few enough to see progress


class DoesNotFit(Exception):
    """A prompt that the model's context cannot hold."""


@dataclass(frozen=True)
class _Ready:
    """A request as the engine takes it. opening: what the chat template has already written of the answer."""

    request: GenerationRequest
    token_ids: Sequence[int]
    opening: str = ""
    note: str = ""


def check_model(model: LocalModel) -> None:
    """Raise UsageError for what can be seen to be wrong before the weights are loaded."""
    from codemill.engine.request import context_length
    from codemill.models.placement import resolve_device, resolve_dtype, resolve_quantization

    source = resolve(model.spec)
    config = source.load_config()
    context_length(config, model.max_model_len)
    resolve_dtype(model.dtype, config)
    resolve_quantization(model.quantization, config.quantization)
    resolve_device(model.device)


def load_generator(model: LocalModel, sampling: Sampling) -> "LocalGenerator":
    """Load the model. Raises UsageError for a wrong spec or option, CodemillError if the checkpoint is broken."""
    import torch

    from codemill.engine.llm import LLM

    if model.threads is not None:
        torch.set_num_threads(model.threads)
    llm = LLM(
        model.spec,
        dtype=model.dtype,
        device=model.device,
        quantization=model.quantization,
        max_model_len=model.max_model_len,
    )
    return LocalGenerator(llm, sampling)


class LocalGenerator:
    """Answers requests with one LLM. Longest prompts first: what does not fit in memory shows at once."""

    def __init__(self, llm: "LLM", sampling: Sampling, adapter: str | None = None) -> None:
        self._llm = llm
        self._sampling = sampling
        self._adapter = adapter

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generated]:
        """See `Generator`. Raises CodemillError if the model produces NaN."""
        ready: list[_Ready] = []
        for request in requests:
            try:
                ready.append(self._prepare(request))
            except DoesNotFit as error:
                yield Generated(request, unable=str(error))
            except UsageError as error:
                yield Generated(request, error=str(error))
        ready.sort(key=lambda each: len(each.token_ids), reverse=True)
        for start in range(0, len(ready), BATCH):
            yield from self._answer(ready[start : start + BATCH])

    def _answer(self, batch: Sequence[_Ready]) -> Iterator[Generated]:
        prompts = [list(each.token_ids) for each in batch]
        outputs = self._llm.generate(prompts, [self._params(each) for each in batch], self._adapter)
        for each, output in zip(batch, outputs, strict=True):
            sample = output.outputs[0]
            yield Generated(each.request, each.opening + sample.text, sample.finish_reason, note=each.note)

    def _params(self, ready: _Ready) -> "SamplingParams":
        from codemill.engine.sampling_params import SamplingParams

        prompt = ready.request.prompt
        return SamplingParams(
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            top_k=0,
            min_p=0.0,
            repetition_penalty=1.0,
            seed=ready.request.seed,
            max_tokens=self._max_tokens(ready.request),
            stop=prompt.stop,
            # In plain code too these end a file; were they only left out, the next file would seem to belong to it.
            stop_token_ids=() if prompt.messages is not None else self._llm.tokenizer.fim_stop_ids,
        )

    def _max_tokens(self, request: GenerationRequest) -> int:
        return self._sampling.max_tokens or request.prompt.max_tokens

    def _prepare(self, request: GenerationRequest) -> _Ready:
        prompt = request.prompt
        if prompt.messages is not None:
            return self._fitting(request, *self._chat(prompt.messages, prompt.tools))
        if prompt.prefix is not None:
            return self._fim(request, prompt.prefix)
        return self._fitting(request, self._llm.tokenizer.encode(prompt.text or ""))

    def _chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[Sequence[int], str]:
        tokenizer = self._llm.tokenizer
        inside_reasoning = tokenizer.render(messages, tools).rstrip().endswith(OPEN)
        return tokenizer.encode_chat(messages, tools), f"{OPEN}\n" if inside_reasoning else ""

    def _fitting(self, request: GenerationRequest, token_ids: Sequence[int], opening: str = "") -> _Ready:
        """The request if its prompt fits the context with room for one token, or the end of the prompt if that may be.

        A prompt that leaves little room is asked all the same: leaving it out would flatter the model.
        """
        if not token_ids:
            raise UsageError("the prompt is empty")
        longest, room = self._llm.max_model_len, self._room(request)
        if request.may_cut and len(token_ids) > room and request.prompt.messages is None:
            note = _cut_note(len(token_ids) - room)
            return _Ready(request, token_ids[len(token_ids) - room :], opening, note)
        if len(token_ids) >= longest:
            raise DoesNotFit(f"the prompt has {len(token_ids)} tokens, the model's context holds {longest}")
        return _Ready(request, token_ids, opening)

    def _fim(self, request: GenerationRequest, prefix: str) -> _Ready:
        """The hole with as many other files as fit, or with its surroundings only if not even its own file does."""
        prompt, tokenizer, room = request.prompt, self._llm.tokenizer, self._room(request)
        if not prefix and not prompt.suffix:
            raise UsageError("the prompt is empty")
        for first in range(len(prompt.context_files) + 1):
            others = prompt.context_files[first:]
            token_ids = fim_ids(tokenizer, prefix, prompt.suffix, prompt.repo_name, others, prompt.path)
            if len(token_ids) <= room:
                return _Ready(request, token_ids)
        cursor = Cursor(Path(request.task_id), prefix, prompt.suffix)
        found = completion_prompt(tokenizer, cursor, room, window=request.may_cut)
        return _Ready(request, found.token_ids, note=_cut_note(found.dropped_tokens))

    def _room(self, request: GenerationRequest) -> int:
        """Tokens of the longest prompt that leaves the answer its length, or at least a quarter of the context."""
        longest = self._llm.max_model_len
        return longest - min(self._max_tokens(request), max(1, longest // 4))


def _cut_note(num_tokens: int) -> str:
    return f"the prompt was too long for the context: {num_tokens} tokens of it were left out" if num_tokens else ""
