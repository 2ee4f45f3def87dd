"""The cache of tokenised documents: a folder of shards, each named after everything it was made from.

A shard is written as a whole or not at all, so a build that was killed goes on where it stopped; a shard whose input,
tokenizer, template and settings are the same is used again, by whatever data set it belongs to.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from codemill.chat.tokenizer import Tokenizer
from codemill.data.cached_documents import CachedDocuments
from codemill.data.document_shard import BrokenShard, open_shard
from codemill.data.segments import cut_segments, find_inputs
from codemill.data.tokenizing import Recipe, Tokenizing

SUFFIX = ".documents"


def default_cache() -> Path:
    """Where caches go that are given no place of their own."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codemill" / "documents"


@dataclass(frozen=True)
class DocumentCache:
    """A folder of shards."""

    directory: Path

    def documents(
        self,
        inputs: Sequence[str | Path],
        tokenizer: Tokenizer,
        recipe: Recipe,
        workers: int = 1,
        progress: Callable[[int], None] = lambda _: None,
    ) -> CachedDocuments:
        """The documents of these files and folders, tokenised if they were not.

        progress: called with the bytes of input that are done. Raises UsageError or CodemillError naming the file, and
        the line, of a record that cannot be read; BrokenShard is never raised: such a file is made again.
        """
        segments = cut_segments(find_inputs(inputs, as_code=recipe.kind == "code"))
        paths = [self.directory / (recipe.key(tokenizer, segment) + SUFFIX) for segment in segments]
        wanted = {path: segment for path, segment in zip(paths, segments, strict=True) if not _is_whole(path)}
        progress(sum(segment.size for path, segment in zip(paths, segments, strict=True) if path not in wanted))
        Tokenizing(tokenizer, recipe).write_all(wanted, workers, progress)
        return CachedDocuments(paths, segments)


def _is_whole(path: Path) -> bool:
    """Whether there is such a shard; one that is damaged is no shard."""
    try:
        open_shard(path, verify=True)
    except BrokenShard:
        return False
    return True
