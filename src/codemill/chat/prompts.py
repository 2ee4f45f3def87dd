"""Prompts for code outside a chat: fill-in-the-middle and whole repositories, as token ids."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from codemill.errors import UsageError

if TYPE_CHECKING:
    from codemill.chat.tokenizer import Tokenizer

FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX = "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"
FIM_PAD, REPO_NAME, FILE_SEP = "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"
FIM_STOPS = (FIM_PREFIX, FIM_SUFFIX, FIM_PAD, REPO_NAME, FILE_SEP, "<|endoftext|>", "<|im_end|>")

PathAndContent = tuple[str, str]


def fim_ids(
    tokenizer: "Tokenizer",
    prefix: str,
    suffix: str,
    repo_name: str | None = None,
    context_files: Sequence[PathAndContent] = (),
    path: str | None = None,
) -> list[int]:
    """Ids of `<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>`, after the repository's other files if any are given.

    `context_files` are (path, content) pairs, the nearest last; `path` names the file being completed. Control tokens
    in the texts stay text. Raises UsageError if the vocabulary lacks a token of the prompt.
    """
    ids: list[int] = []
    if repo_name is not None or context_files or path is not None:
        ids += repository_ids(tokenizer, repo_name or "repository", context_files)
        ids += [_control(tokenizer, FILE_SEP), *tokenizer.encode(f"{path or 'file'}\n")]
    ids += [_control(tokenizer, FIM_PREFIX), *tokenizer.encode(prefix)]
    ids += [_control(tokenizer, FIM_SUFFIX), *tokenizer.encode(suffix)]
    return [*ids, _control(tokenizer, FIM_MIDDLE)]


def repository_ids(tokenizer: "Tokenizer", repo_name: str, files: Iterable[PathAndContent]) -> list[int]:
    """Ids of `<|repo_name|>NAME\\n<|file_sep|>PATH\\nCONTENT\\n...`; each content ends with exactly one added newline
    unless it has one. Raises UsageError if the vocabulary lacks a token of the prompt."""
    ids = [_control(tokenizer, REPO_NAME), *tokenizer.encode(f"{repo_name}\n")]
    for path, content in files:
        newline = "" if content.endswith("\n") else "\n"
        ids += [_control(tokenizer, FILE_SEP), *tokenizer.encode(f"{path}\n{content}{newline}")]
    return ids


def fim_stop_ids(tokenizer: "Tokenizer") -> tuple[int, ...]:
    """Ids that end a completion of these prompts, those the vocabulary has (empty if it has none)."""
    ids = (tokenizer.control_tokens.get(token) for token in FIM_STOPS)
    return tuple(i for i in ids if i is not None)


def _control(tokenizer: "Tokenizer", token: str) -> int:
    token_id = tokenizer.control_tokens.get(token)
    if token_id is None:
        raise UsageError(f"this model cannot complete inside a file: its vocabulary has no {token}")
    return token_id
