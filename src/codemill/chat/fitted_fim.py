"""A fill-in-the-middle prompt that fits the context, whatever an editor sends."""

from collections.abc import Sequence

from codemill.chat.completion import surroundings
from codemill.chat.prompts import PathAndContent, fim_ids, repository_ids
from codemill.chat.tokenizer import Tokenizer

REPO_NAME = "repository"


def fitted_fim_ids(
    tokenizer: Tokenizer,
    prefix: str,
    suffix: str,
    context_files: Sequence[PathAndContent],
    path: str | None,
    budget: int,
) -> list[int]:
    """`fim_ids` in at most `budget` tokens: what surrounds the hole, then as many of the nearest files as fit whole.

    context_files: (path, content) pairs, the nearest last. Raises UsageError if there is no room even for the hole.
    """
    alone = fim_ids(tokenizer, prefix, suffix)
    if len(alone) > budget:
        return fim_ids(tokenizer, *surroundings(tokenizer, prefix, suffix, budget))
    room = budget - len(fim_ids(tokenizer, prefix, suffix, REPO_NAME, (), path))
    chosen: list[PathAndContent] = []
    for file in reversed(context_files):
        room -= len(repository_ids(tokenizer, REPO_NAME, [file]))
        if room < 0:
            break
        chosen.insert(0, file)
    return fim_ids(tokenizer, prefix, suffix, REPO_NAME, chosen, path) if chosen else alone
