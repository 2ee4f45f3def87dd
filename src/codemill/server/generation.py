"""The one request type behind all protocols, and the events that answer it."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from codemill.chat.fitted_fim import fitted_fim_ids
from codemill.chat.prompts import fim_ids
from codemill.chat.reasoning import OPEN as THINK
from codemill.chat.tokenizer import Tokenizer
from codemill.engine.outputs import RequestOutput
from codemill.engine.prompts import Prompt
from codemill.engine.sampling_params import SamplingParams
from codemill.engine.structured_output import StructuredOutput
from codemill.engine.updates import StreamUpdate
from codemill.errors import CodemillError, UsageError
from codemill.server.aside import is_long
from codemill.server.event_reader import EventReader
from codemill.server.events import Event
from codemill.server.served_model import ServedModel
from codemill.server.shape import Shape, Shaper

RENDERED = ("messages", "tools", "self", "marks")  # what a template is rendered with besides variables


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation, its messages in OpenAI's form. variables: of the chat template.

    prefill: how the answer begins; it is not in the events.
    """

    messages: Sequence[Mapping[str, Any]]
    variables: Mapping[str, Any] = field(default_factory=dict)
    prefill: str = ""


@dataclass(frozen=True)
class TextPrompt:
    """Text to go on from. has_control_tokens: control tokens in it are meant as such, and not as their text."""

    text: str
    has_control_tokens: bool = False


@dataclass(frozen=True)
class TokenPrompt:
    """Token ids to go on from."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class FimPrompt:
    """A hole to fill. context_files: (path, content) pairs, the nearest last. fits: cut it to fit, never refuse it."""

    prefix: str
    suffix: str
    repo_name: str | None = None
    context_files: tuple[tuple[str, str], ...] = ()
    path: str | None = None
    fits: bool = False


@dataclass(frozen=True)
class ToolUse:
    """Tools in OpenAI's form. choice: auto, none, required or a name. strict: calls must fit the schemas.

    loaded: tools that may be called as well, which the conversation itself describes, not the list before it.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    choice: str = "auto"
    parallel: bool = True
    strict: bool = False
    loaded: Sequence[Mapping[str, Any]] = ()

    @property
    def callable_tools(self) -> list[Mapping[str, Any]]:
        return [*self.tools, *self.loaded]

    @property
    def may_call(self) -> bool:
        return bool(self.callable_tools) and self.choice != "none"

    @property
    def must_call(self) -> bool:
        return self.may_call and self.choice != "auto"


@dataclass(frozen=True)
class GenerationRequest:
    """What every protocol asks for. deadline: seconds after which the answer ends with what it has.

    shape: what the answer is made of besides what the model says.
    """

    prompt: ChatPrompt | TextPrompt | TokenPrompt | FimPrompt
    params: SamplingParams
    tool_use: ToolUse = field(default_factory=ToolUse)
    priority: int = 0
    deadline: float | None = None
    request_id: str | None = None
    shape: Shape = field(default_factory=Shape)


@dataclass(frozen=True)
class PreparedRequest:
    """A request in the engine's terms. thinks: the prompt ends inside the reasoning."""

    prompt: Prompt
    params: SamplingParams
    thinks: bool = False


async def generate(model: ServedModel, request: GenerationRequest, *, stream: bool) -> AsyncGenerator[Event, None]:
    """The answer's events; the first comes when the request is accepted, and what is wrong with it is raised before.

    stream: whether anybody looks at the answer before it is whole. Closing the generator ends the work.
    """
    model.engine.check_room()  # before a prompt is made that would only be refused
    prepared = await _prepare(model, request)
    reader = EventReader(
        model.tokenizer,
        request.tool_use,
        num_samples=prepared.params.n,
        thinks=prepared.thinks,
        is_chat=isinstance(request.prompt, ChatPrompt),
    )
    shaper = Shaper(request.shape, model.tokenizer, prepared.prompt, _echoed(request), prepared.params)
    stream = stream or request.shape.line_limits is not None
    async with aclosing(_updates(model, request, prepared, stream)) as updates:
        async for update in updates:
            for event in shaper.shape(update, reader.read(update)):
                yield event
            if (reader.is_done or shaper.is_done) and update.output is None:  # enough was said: the rest is not wanted
                model.engine.abort(request.request_id or "")


def count_tokens(model: ServedModel, request: GenerationRequest) -> int:
    """Tokens of the prompt that `generate` would make of the request."""
    return len(prompt_ids(model.tokenizer, _without_thinking(request)))


async def _prepare(model: ServedModel, request: GenerationRequest) -> PreparedRequest:
    if is_long(_content(request)):
        return await asyncio.to_thread(prepare, model, request)
    return prepare(model, request)


def prepare(model: ServedModel, request: GenerationRequest) -> PreparedRequest:
    """The prompt's ids, and parameters that make the output what the tools and the model need."""
    request = _without_thinking(request)
    ids = _fitted_ids(model, request) or prompt_ids(model.tokenizer, request)
    is_chat = isinstance(request.prompt, ChatPrompt)
    thinks = is_chat and model.tokenizer.decode(ids[-4:]).rstrip().endswith(THINK)
    return PreparedRequest(Prompt(None, tuple(ids)), _params(model, request), thinks)


def _fitted_ids(model: ServedModel, request: GenerationRequest) -> list[int] | None:
    """The ids of a prompt that is to be cut where it is too long; the answer gets a quarter of the context at most."""
    prompt = request.prompt
    if not isinstance(prompt, FimPrompt) or not prompt.fits:
        return None
    budget = model.max_model_len - min(request.params.max_tokens or 1, model.max_model_len // 4)
    return fitted_fim_ids(
        model.tokenizer, prompt.prefix, prompt.suffix, prompt.context_files, prompt.path, max(1, budget)
    )


def prompt_ids(tokenizer: Tokenizer, request: GenerationRequest) -> list[int]:
    """Ids of the prompt. Raises UsageError for what is malformed."""
    prompt = request.prompt
    if isinstance(prompt, TokenPrompt):
        return list(prompt.token_ids)
    if isinstance(prompt, TextPrompt):
        return tokenizer.encode(prompt.text, allowed_special="all" if prompt.has_control_tokens else frozenset())
    if isinstance(prompt, FimPrompt):
        place = (prompt.repo_name, prompt.context_files, prompt.path)
        return fim_ids(tokenizer, prompt.prefix, prompt.suffix, *place)
    # Tools stay in the prompt where none may be called, so that it begins as the turns before did.
    return _chat_ids(tokenizer, prompt, request.tool_use) + tokenizer.encode(prompt.prefill)


def _chat_ids(tokenizer: Tokenizer, prompt: ChatPrompt, tool_use: ToolUse) -> list[int]:
    taken = next((name for name in RENDERED if name in prompt.variables), None)
    if taken is not None:
        raise UsageError(f"chat_template_kwargs: {taken} is no variable of its own; leave it out")
    try:
        return tokenizer.encode_chat(prompt.messages, list(tool_use.tools) or None, **prompt.variables)
    except RecursionError as error:
        raise UsageError("messages: something in them is nested too deeply") from error
    except UsageError:
        raise
    except CodemillError as error:  # the template cannot take this conversation, or the variables given for it
        raise UsageError(str(error)) from error


def _echoed(request: GenerationRequest) -> str | None:
    """What an echo says; None for the text of the ids."""
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        return prompt.prefill
    if isinstance(prompt, FimPrompt):
        return prompt.prefix
    return prompt.text if isinstance(prompt, TextPrompt) else None


def _without_thinking(request: GenerationRequest) -> GenerationRequest:
    """A form that begins with the first token leaves no room for reasoning; templates are told so."""
    prompt = request.prompt
    is_formed = request.params.structured_output is not None or request.tool_use.must_call
    if not isinstance(prompt, ChatPrompt) or not is_formed or "enable_thinking" in prompt.variables:
        return request
    return replace(request, prompt=replace(prompt, variables={**prompt.variables, "enable_thinking": False}))


def _params(model: ServedModel, request: GenerationRequest) -> SamplingParams:
    params, use = request.params, request.tool_use
    if isinstance(request.prompt, FimPrompt):
        stops = (*params.stop_token_ids, *model.tokenizer.fim_stop_ids)
        return replace(params, stop_token_ids=tuple(dict.fromkeys(stops)))
    if use.callable_tools and use.choice == "none":
        return _without_calls(model.tokenizer, params)
    wanted = params.structured_output
    is_json = wanted is not None and wanted.is_json and not use.must_call
    if not use.may_call or not (use.must_call or use.strict or is_json):
        return params
    # A schema binds the text; it does not forbid calls.
    answer = wanted.schema if wanted is not None and is_json else None
    form = StructuredOutput.for_tools(use.callable_tools, use.choice, model.call_style, use.parallel, answer)
    return replace(params, structured_output=form)


def _without_calls(tokenizer: Tokenizer, params: SamplingParams) -> SamplingParams:
    """A model that sees tools but must not call any cannot write the token that begins a call."""
    token_id = tokenizer.control_tokens.get("<tool_call>")
    if token_id is None or params.structured_output is not None:
        return params
    return replace(params, logit_bias={**(params.logit_bias or {}), token_id: -100.0})


async def _updates(
    model: ServedModel, request: GenerationRequest, prepared: PreparedRequest, stream: bool
) -> AsyncGenerator[StreamUpdate, None]:
    options: dict[str, Any] = {
        "priority": request.priority,
        "deadline": request.deadline,
        "adapter": model.adapter,
        "request_id": request.request_id,
    }
    if stream and prepared.params.best_of is None:
        async with aclosing(model.engine.stream(prepared.prompt, prepared.params, **options)) as updates:
            async for update in updates:
                yield update
        return
    output = await model.engine.generate(prepared.prompt, prepared.params, **options)
    for update in _as_updates(output):
        yield update


def _as_updates(output: RequestOutput) -> list[StreamUpdate]:
    """A whole result as if it had come at once."""
    last = len(output.outputs) - 1
    return [
        StreamUpdate(
            index=sample.index,
            text=sample.text,
            token_ids=tuple(sample.token_ids),
            logprobs=sample.logprobs,
            top_logprobs=sample.top_logprobs,
            finish_reason=sample.finish_reason,
            stop_reason=sample.stop_reason,
            output=output if position == last else None,
        )
        for position, sample in enumerate(output.outputs)
    ]


def _content(request: GenerationRequest) -> list[Any]:
    """All that the prompt is made of."""
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        return [prompt.messages, prompt.variables, prompt.prefill, request.tool_use.callable_tools]
    if isinstance(prompt, FimPrompt):
        return [prompt.prefix, prompt.suffix, prompt.context_files]
    return [prompt.text] if isinstance(prompt, TextPrompt) else []
