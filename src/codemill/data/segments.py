"""Inputs larger than memory, cut into segments that are read, tokenised and cached one by one.

A cut depends on the content before it alone: what is appended to a file later leaves its first segments as they are.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from glob import glob, has_magic
from itertools import chain
from pathlib import Path
from typing import IO

from codemill.data.documents import TrainingFile, find_files
from codemill.errors import CodemillError, UsageError

SEGMENT_BYTES = 16 << 20
GZIP_SEGMENT_BYTES = 64 << 20  # to begin in the middle of such a file, all before is decompressed again
TABLES = (".parquet", ".arrow")
_NO_RECORDS = (".csv", ".tsv", ".xls", ".xlsx")


@dataclass(frozen=True)
class Piece:
    """Bytes start..end of a file's decompressed content; first_line: the number of its first line, from 1."""

    file: TrainingFile
    start: int
    end: int
    first_line: int = 1

    @property
    def is_table(self) -> bool:
        return self.file.path.suffix.lower() in TABLES


@dataclass(frozen=True)
class Segment:
    """Pieces that are tokenised together. digest: of their content, and of the names of files that are texts."""

    pieces: tuple[Piece, ...]
    digest: str

    @property
    def size(self) -> int:
        return sum(piece.end - piece.start for piece in self.pieces)


def find_inputs(inputs: Sequence[str | Path], as_code: bool = False) -> list[TrainingFile]:
    """The files named, those that patterns like `data/*.jsonl` match, and those below the folders named.

    Of a folder with files of records only these are taken, since what lies beside them describes them; as_code: all.
    Raises UsageError as `find_files` does.
    """
    if not inputs:
        raise UsageError("no training data is named; give files or folders")
    files: list[TrainingFile] = []
    for given in chain.from_iterable(map(_matching, inputs)):
        if given.suffix.lower() in TABLES and given.is_file():
            files.append(TrainingFile(given, Path(given.name)))
        elif as_code:
            files += find_files([given])
        elif given.is_dir():
            _check_not_packed(given)
            files += _with_records(find_files([given]))
        else:
            files += _named(given)
    return files


def _matching(given: str | Path) -> list[Path]:
    """The path itself, or what it matches as a pattern."""
    path = Path(given)
    if path.exists() or not has_magic(str(given)):
        return [path]
    found = sorted(map(Path, glob(str(given), recursive=True)))
    if not found:
        raise UsageError(f"{given}: no file matches")
    return found


def _check_not_packed(folder: Path) -> None:
    if (folder / "pack.json").is_file() and (folder / "rows.npy").is_file():
        raise UsageError(
            f"{folder} holds packed data, which only `codemill train sft` takes, alone: give what it was made of"
        )


def _named(path: Path) -> list[TrainingFile]:
    if path.suffix.lower() in _NO_RECORDS:
        raise UsageError(f"{path}: convert it to JSON Lines (a record on each line)")
    if _is_json(path) and path.is_file():
        return [TrainingFile(path, Path(path.name), is_json=True)]
    return find_files([path])


def _with_records(files: Sequence[TrainingFile]) -> Sequence[TrainingFile]:
    """Those with a record on each line, or in tables; else those that are JSON, with a README at most; else all."""
    lines = [file for file in files if file.has_records or file.path.suffix.lower() in TABLES]
    lists = [replace(file, is_json=True) for file in files if _is_json(file.path)]
    is_data = all(_is_json(file.path) or file.path.suffix.lower() in ("", ".md") for file in files)
    return lines or (lists if lists and is_data else files)


def _is_json(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".json")


def cut_segments(files: Sequence[TrainingFile]) -> list[Segment]:
    """The segments of these files, in order; small files share one. Reads everything once."""
    segments: list[Segment] = []
    pieces: list[Piece] = []
    digests: list[bytes] = []
    for file in files:
        for piece, digest in _pieces(file):
            pieces.append(piece)
            digests.append(digest)
            if sum(held.end - held.start for held in pieces) >= SEGMENT_BYTES:
                segments.append(_segment(pieces, digests))
                pieces, digests = [], []
    return [*segments, _segment(pieces, digests)] if pieces else segments


@contextmanager
def opened(file: TrainingFile) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """The decompressed content. Raises CodemillError naming a file that cannot be read or decompressed."""
    try:
        with ExitStack() as stack:
            content: IO[bytes] | gzip.GzipFile = stack.enter_context(file.path.open("rb"))
            yield stack.enter_context(gzip.open(content)) if file.is_gzip else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CodemillError(f"{file.path} cannot be decompressed ({error}): get it again") from None
    except OSError as error:
        raise CodemillError(f"{file.path} cannot be read: {error.strerror or error}") from None


def place_in_repository(file: TrainingFile) -> tuple[str, str]:
    """The name of the repository a file lies in, and its path there. A repository is the Git checkout, else the folder
    that was named, else the file's own folder."""
    above = file.path.absolute().parents[: len(file.name.parts)]
    root = next((folder for folder in above if _is_checkout(folder)), above[-1])
    return root.name, file.path.absolute().relative_to(root).as_posix()


@cache
def _is_checkout(folder: Path) -> bool:
    return (folder / ".git").exists()


def _segment(pieces: Sequence[Piece], digests: Sequence[bytes]) -> Segment:
    return Segment(tuple(pieces), hashlib.sha256(b"".join(digests)).hexdigest())


def _pieces(file: TrainingFile) -> Iterator[tuple[Piece, bytes]]:
    """The pieces of a file and the digest of each; only files with a record on each line are cut."""
    size = GZIP_SEGMENT_BYTES if file.is_gzip else SEGMENT_BYTES
    name = b"" if file.has_records else "\0".join(place_in_repository(file)).encode("utf-8", "surrogateescape")
    start, line = 0, 1
    with opened(file) as content:
        while block := content.read(size):
            digest = hashlib.sha256(name + b"\0" + block)
            end, lines = start + len(block), block.count(b"\n")
            for rest in _rest(content, file.has_records, block.endswith(b"\n")):
                digest.update(rest)
                end, lines = end + len(rest), lines + rest.count(b"\n")
            yield Piece(file, start, end, line), digest.digest()
            start, line = end, line + lines


def _rest(content: IO[bytes] | gzip.GzipFile, has_records: bool, at_line_end: bool) -> Iterator[bytes]:
    """What belongs to the piece too: the line's end, or all of a file that is one text."""
    if not has_records:
        while block := content.read(SEGMENT_BYTES):
            yield block
    elif not at_line_end:
        yield content.readline()
