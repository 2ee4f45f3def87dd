"""A model behind any OpenAI-compatible server: `/v1/completions` and `/v1/chat/completions`, several at a time."""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from queue import Queue
from typing import Any, Literal

from codemill.chat.messages import normalize_tools
from codemill.chat.prompts import FILE_SEP, FIM_MIDDLE, FIM_PREFIX, FIM_STOPS, FIM_SUFFIX, REPO_NAME
from codemill.chat.reasoning import CLOSE, OPEN
from codemill.errors import CodemillError
from codemill.eval.endpoint_client import Endpoint, EndpointClient, Stopped, Unanswered
from codemill.eval.generation import Generated, GenerationRequest, Sampling
from codemill.eval.suite import Prompt

FimForm = Literal["tokens", "suffix"]
FEWEST_BEFORE_GIVING_UP = 10  # samples in a row without an answer
OPENAI_STOPS = 4  # the most stop strings that OpenAI's own server takes

Parsed = tuple[str, str | None]  # text, finish_reason
_Results = Queue[Generated | BaseException | None]
# What OpenAI, vLLM, llama.cpp and their kin say of a prompt that is too long, in a refusal that is final.
_CONTEXT_FULL = re.compile(r"answered 4\d\d .*(context.?length|context (size|window)|maximum context)", re.IGNORECASE)


class EndpointGenerator:
    """Answers requests through a server. fim: how the text after a hole is said: by Qwen's FIM tokens in the prompt, or
    in the field `suffix`, which many servers refuse or ignore."""

    def __init__(self, endpoint: Endpoint, sampling: Sampling, concurrency: int = 8, fim: FimForm = "tokens") -> None:
        self._endpoint = endpoint
        self._sampling = sampling
        self._concurrency = concurrency
        self._fim = fim
        self._takes_many_stops = True

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generated]:
        """See `Generator`. A request without an answer becomes an error of its own; a long row of them ends the run
        with a CodemillError, as does a wrong URL, key or model."""
        client = EndpointClient(self._endpoint)
        results: _Results = Queue()
        waiting, lock = iter(requests), threading.Lock()

        def take() -> GenerationRequest | None:
            with lock:
                return next(waiting, None)

        # Not an executor: its threads would hold up the end of the process after Ctrl-C until their requests end.
        for _ in range(min(self._concurrency, len(requests))):
            threading.Thread(target=self._work, args=(client, take, results), daemon=True).start()
        try:
            yield from self._collect(results, len(requests))
        finally:
            client.stop()

    def _work(self, client: EndpointClient, take: Callable[[], GenerationRequest | None], results: _Results) -> None:
        """Answer requests until none is left. The last thing put is why this thread ended: None for its duty done."""
        end: BaseException | None = RuntimeError("a thread of requests died")
        try:
            while (request := take()) is not None:
                results.put(self._answer(client, request))
            end = None
        except (CodemillError, Stopped) as error:
            end = error
        finally:
            results.put(end)

    def _collect(self, results: _Results, count: int) -> Iterator[Generated]:
        failures = 0
        while count:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                continue
            count -= 1
            failures = failures + 1 if result.error is not None else 0
            yield result
            if count and failures >= max(FEWEST_BEFORE_GIVING_UP, 2 * self._concurrency):
                raise CodemillError(f"{failures} requests in a row had no answer; the last: {result.error}")

    def _answer(self, client: EndpointClient, request: GenerationRequest) -> Generated:
        is_chat = request.prompt.messages is not None
        try:
            if is_chat:
                text, reason = self._post(client, "chat/completions", self._payload(request), parse_chat)
            else:
                text, reason = self._post(client, "completions", self._payload(request), parse_completion)
        except Unanswered as error:
            if _CONTEXT_FULL.search(str(error)):  # the model's own limit, which no further try changes
                return Generated(request, unable=str(error))
            return Generated(request, error=str(error))
        return Generated(request, text if is_chat else _until_control_token(text), reason)

    def _post(
        self,
        client: EndpointClient,
        path: str,
        payload: dict[str, Any],
        parse: Callable[[Mapping[str, Any]], Parsed],
    ) -> Parsed:
        """Post with all stop strings, or with the first few where a server takes no more: the suite cuts the rest."""
        stops = payload.pop("stop")
        if stops and self._takes_many_stops:
            try:
                return client.post(path, {**payload, "stop": stops}, parse)
            except Unanswered as error:
                if len(stops) <= OPENAI_STOPS or "stop" not in str(error):
                    raise
                self._takes_many_stops = False
        few = {"stop": stops[:OPENAI_STOPS]} if stops else {}
        return client.post(path, {**payload, **few}, parse)

    def _payload(self, request: GenerationRequest) -> dict[str, Any]:
        prompt, sampling = request.prompt, self._sampling
        return {
            "model": self._endpoint.model,
            **self._content(prompt),
            "max_tokens": sampling.max_tokens or prompt.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed,
            "stop": list(prompt.stop),
        }

    def _content(self, prompt: Prompt) -> dict[str, Any]:
        if prompt.messages is not None:
            tools = [_with_plain_name(tool) for tool in normalize_tools(prompt.tools)]
            return {"messages": [dict(each) for each in prompt.messages]} | ({"tools": tools} if tools else {})
        if prompt.prefix is None:
            return {"prompt": prompt.text or ""}
        if self._fim == "suffix":
            return {"prompt": prompt.prefix, "suffix": prompt.suffix}
        return {"prompt": fim_text(prompt)}


def fim_text(prompt: Prompt) -> str:
    """The hole in FIM tokens, within its repository if it has one: the text of `chat.prompts.fim_ids`."""
    parts = []
    if prompt.repo_name is not None or prompt.context_files or prompt.path is not None:
        parts.append(f"{REPO_NAME}{prompt.repo_name or 'repository'}\n")
        for path, content in prompt.context_files:
            parts.append(f"{FILE_SEP}{path}\n{content}" + ("" if content.endswith("\n") else "\n"))
        parts.append(f"{FILE_SEP}{prompt.path or 'file'}\n")
    return "".join([*parts, FIM_PREFIX, prompt.prefix or "", FIM_SUFFIX, prompt.suffix, FIM_MIDDLE])


def parse_completion(answer: Mapping[str, Any]) -> Parsed:
    """Text and finish_reason of an answer of `/v1/completions`. Raises ValueError for what is none."""
    choice = _first_choice(answer)
    text = choice.get("text")
    if not isinstance(text, str):
        raise ValueError("its choice has no text")
    return text, _finish_reason(choice)


def parse_chat(answer: Mapping[str, Any]) -> Parsed:
    """Text and finish_reason of an answer of `/v1/chat/completions`; reasoning and tool calls that the server has taken
    out of the text are put back, in the forms that Qwen models write. Raises ValueError for what is none."""
    choice = _first_choice(answer)
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise ValueError("its choice has no message")
    content, calls = message.get("content"), message.get("tool_calls") or []
    # Null is an answer without text if it ended as answers end: thinking took all tokens, or the model refused.
    is_empty = content is None and not calls and _finish_reason(choice) is None
    if not isinstance(content, str | None) or not isinstance(calls, list) or is_empty:
        raise ValueError("its message has no content")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    parts = [f"{OPEN}\n{reasoning}\n{CLOSE}\n"] if isinstance(reasoning, str) else []
    parts += [content or "", *map(_call_text, calls)]
    return "\n".join(filter(None, parts)), _finish_reason(choice)


def _first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        problem = answer.get("error")
        raise ValueError(f"no choices, but an error: {problem}" if problem else "it has no choices")
    return choices[0]


def _finish_reason(choice: Mapping[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    return reason if isinstance(reason, str) else None


def _call_text(call: Any) -> str:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError("a tool call has no function name")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):  # the model's mistake: judged as it is
            arguments = json.loads(arguments)
    return f"<tool_call>\n{json.dumps({'name': function['name'], 'arguments': arguments})}\n</tool_call>"


def _with_plain_name(tool: dict[str, Any]) -> dict[str, Any]:
    """Servers take only letters, digits, `_` and `-` in a function's name; BFCL has dots there, and accepts `_`."""
    function = tool["function"]
    return {**tool, "function": {**function, "name": re.sub(r"[^\w-]", "_", function["name"], flags=re.ASCII)}}


def _until_control_token(text: str) -> str:
    """Servers differ in whether they show the token that ends a completion."""
    ends = [at for stop in FIM_STOPS if (at := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]
