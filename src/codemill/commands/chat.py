"""`codemill chat`: a dialogue in the terminal."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from codemill.commands import add_verb, options
from codemill.errors import CodemillError, UsageError

if TYPE_CHECKING:
    from codemill import LLM, SamplingParams

EXAMPLES = """
codemill chat
codemill chat --model Qwen/Qwen3-Coder-30B-A3B-Instruct --system 'Answer with code only.'
echo 'Write a Python function that reverses a string.' | codemill chat
"""
HELP = "/reset forgets the dialogue, /exit ends it; Ctrl-C stops an answer."


def register(app: typer.Typer) -> None:
    add_verb(app, chat, EXAMPLES)


def chat(
    model: options.Model = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    quantization: options.Quantization = None,
    max_model_len: options.MaxModelLen = None,
    threads: options.Threads = None,
    speculative: options.Speculative = None,
    prefix_cache_dir: options.PrefixCacheDir = None,
    kv_cache_dtype: options.KvCacheDtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each answer.")] = False,
) -> None:
    """Talk with a model: /reset starts over, Ctrl-C stops an answer, Ctrl-D or /exit ends."""
    from codemill import SamplingParams

    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_tokens=max_tokens,
    )
    dialogue = Dialogue(
        options.load_llm(
            model, dtype, device, max_model_len, threads, speculative, prefix_cache_dir, quantization, kv_cache_dtype
        ),
        params,
        system,
        as_json,
    )
    for line in _lines():
        try:
            dialogue.take(line)
        except KeyboardInterrupt:  # a second one, just after the one that stopped the answer
            print(file=sys.stderr)
    if dialogue.failed and not sys.stdin.isatty():
        raise typer.Exit(1)


class Dialogue:
    """The messages so far, and what each line of the user does to them. `failed` once a message had no answer."""

    def __init__(self, llm: "LLM", params: "SamplingParams", system: str | None = None, as_json: bool = False) -> None:
        self.llm, self.params, self.as_json = llm, params, as_json
        self._start = [{"role": "system", "content": system}] if system is not None else []
        self.messages = list(self._start)
        self.failed = False

    def take(self, line: str) -> None:
        """Obey a command or answer a message. An error is shown, and the message that caused it is forgotten."""
        command = line.strip()
        if command == "/reset":
            self.messages = list(self._start)
            print("(forgotten)", file=sys.stderr)
        elif command.startswith("/"):
            print(HELP, file=sys.stderr)
        elif command:
            self._answer(line)

    def _answer(self, line: str) -> None:
        messages = [*self.messages, {"role": "user", "content": line}]
        try:
            answer, finish_reason = self._stream(messages)
        except CodemillError as error:
            self.failed = True
            print(f"codemill: error: {error} (/reset starts over)", file=sys.stderr)
            return
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        if self.as_json:
            print(json.dumps({"content": answer, "finish_reason": finish_reason}, ensure_ascii=False), flush=True)

    def _stream(self, messages: Sequence[dict[str, str]]) -> tuple[str, str]:
        """Print the answer as it comes; what Ctrl-C cuts short counts as the answer."""
        pieces: list[str] = []
        finish_reason, metrics = "interrupted", None
        try:
            for piece in self.llm.stream_chat(messages, self.params):
                pieces.append(piece)
                if not self.as_json:
                    print(piece, end="", flush=True)
                if piece.finish_reason is not None:
                    finish_reason, metrics = piece.finish_reason, piece.metrics
        except KeyboardInterrupt:
            print(" (stopped)", file=sys.stderr)
        if not self.as_json:
            print()
        options.print_speed(metrics)
        return "".join(pieces), finish_reason


def _lines() -> Iterator[str]:
    """What the user types, until /exit or the end of the input; Ctrl-C at the prompt only clears the line."""
    interactive = sys.stdin.isatty()
    if interactive:
        with suppress(ImportError):  # some Pythons have none
            import readline  # noqa: F401  line editing and history for input()

        print(HELP, file=sys.stderr)
    while True:
        try:
            line = input("> " if interactive else "")
            line.encode()  # fails for the surrogates that stand for broken bytes in the C locale
        except KeyboardInterrupt:
            print(file=sys.stderr)
            continue
        except EOFError:
            return
        except UnicodeError:
            raise UsageError("standard input is no UTF-8 text: a message must be text") from None
        if line.strip() in ("/exit", "/quit"):
            return
        yield line
