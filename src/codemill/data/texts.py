"""Text to measure or calibrate a model with: files as documents, and documents as windows of tokens."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

from codemill.data.documents import find_files, read_documents
from codemill.errors import CodemillError, UsageError


def read_texts(path: Path) -> list[str]:
    """The documents of a file or folder: the records of JSON Lines, other files whole (see `find_files`).

    Raises UsageError for what does not exist or holds no text, and CodemillError naming a document that cannot be read.
    """
    texts = []
    for file in find_files([path]):
        for document in read_documents(file):
            if document.fault:
                line = "" if document.line is None else f", line {document.line}"
                raise CodemillError(f"{file.path}{line}: {document.fault}")
            texts.append(document.text)
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UsageError(f"{path} holds no text")
    return texts


def cut_windows(documents: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Token ids of documents -> windows of at most `size` ids that do not overlap; documents are not joined.

    Rests of a single token predict nothing and are left out.
    """
    pieces = [list(ids[start : start + size]) for ids in documents for start in range(0, len(ids), size)]
    return [piece for piece in pieces if len(piece) > 1]


def sample_windows(documents: Sequence[Sequence[int]], size: int, num_tokens: int, seed: int) -> list[list[int]]:
    """Windows as `cut_windows` makes them, in an order that `seed` determines, until they hold `num_tokens` ids."""
    windows = cut_windows(documents, size)
    Random(seed).shuffle(windows)
    chosen, count = [], 0
    for window in windows:
        if count >= num_tokens:
            break
        chosen.append(window)
        count += len(window)
    return chosen
