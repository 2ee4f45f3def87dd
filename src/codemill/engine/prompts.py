"""What a caller may give as a prompt, turned into token ids, or refused with one line. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from codemill.chat.tokenizer import Tokenizer
from codemill.errors import UsageError


class PromptTooLong(UsageError):
    """A prompt that leaves no room for an answer. Lengths in tokens."""

    def __init__(self, name: str, num_tokens: int, max_model_len: int) -> None:
        super().__init__(
            f"{name} has {num_tokens} tokens, but the context (max_model_len) holds {max_model_len}, "
            "the answer included: shorten the prompt"
        )
        self.name, self.num_tokens, self.max_model_len = name, num_tokens, max_model_len

    def __reduce__(self) -> tuple[type["PromptTooLong"], tuple[str, int, int]]:
        return PromptTooLong, (self.name, self.num_tokens, self.max_model_len)


@dataclass(frozen=True)
class Prompt:
    """A prompt as ids; `text` is None if ids are what the caller gave."""

    text: str | None
    token_ids: tuple[int, ...]


def parse_prompts(prompts: Any, tokenizer: Tokenizer) -> list[Prompt]:
    """A text, a list of texts, or a list of token id lists. Control tokens in texts are encoded as text.

    Raises UsageError naming the prompt that is none of these.
    """
    if isinstance(prompts, str):
        return [_text_prompt(prompts, tokenizer)]
    if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray)):
        raise UsageError(f"prompts are {_kind(prompts)}: give a text, a list of texts or a list of token id lists")
    if prompts and _is_id(prompts[0]):
        raise UsageError("prompts is a list of numbers: give [ids], a list of token id lists")
    return [_parse_prompt(prompt, number, tokenizer) for number, prompt in enumerate(prompts)]


def check_prompt(prompt: Prompt, name: str, vocab_size: int, max_model_len: int) -> None:
    """Raise UsageError unless the model can take this prompt and has room for one token more."""
    num_tokens = len(prompt.token_ids)
    if not num_tokens:
        raise UsageError(f"{name} is empty: give at least one token")
    if num_tokens >= max_model_len:
        raise PromptTooLong(name, num_tokens, max_model_len)
    for token_id in prompt.token_ids:
        if not 0 <= token_id < vocab_size:
            raise UsageError(f"{name} has token id {token_id}: the model's vocabulary has ids 0 to {vocab_size - 1}")


def _parse_prompt(prompt: Any, number: int, tokenizer: Tokenizer) -> Prompt:
    if isinstance(prompt, str):
        return _text_prompt(prompt, tokenizer)
    is_list = isinstance(prompt, Sequence) and not isinstance(prompt, (bytes, bytearray))
    if not is_list or not all(_is_id(token_id) for token_id in prompt):
        raise UsageError(f"prompts[{number}] is {_kind(prompt)}: give a text or a list of token ids")
    return Prompt(None, tuple(prompt))


def _text_prompt(text: str, tokenizer: Tokenizer) -> Prompt:
    return Prompt(text, tuple(tokenizer.encode(text)))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return "a list of something else"
    return f"of type {type(value).__name__}"
