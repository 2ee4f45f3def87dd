"""The files that an agent may see and change: those below one folder."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from codemill.agent.plain_file import read_plain, replace_plain
from codemill.agent.tool import ToolError
from codemill.sandbox.workspace_secrets import is_secret_name

MAX_BYTES = 10 << 20
ENCODINGS = ("utf-8", "latin-1")  # whatever is no UTF-8 is read byte for byte, and written so
# Byte order marks, and what they say.
MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))


@dataclass(frozen=True)
class TextFile:
    """A text file as it was read. text: with "\\n" at the ends of lines, whatever they are in the file.

    newline: what they are. mark: the byte order mark at the beginning. digest: of the bytes.
    """

    text: str
    encoding: str = "utf-8"
    newline: str = "\n"
    mark: bytes = b""
    digest: str = ""

    def encode(self, text: str) -> bytes:
        """The bytes of other text in the same form. Raises ToolError for characters that the encoding lacks."""
        lines = text if self.newline == "\n" else text.replace("\r\n", "\n").replace("\n", self.newline)
        try:
            data = lines.encode(self.encoding)
        except UnicodeEncodeError as error:
            character = lines[error.start]
            raise ToolError(
                f"the file is in {self.encoding}, which has no {character!r}: write it another way"
            ) from None
        return self.mark + data


class Workspace:
    """The folder, and what the agent has read in it.

    Paths of a model may be relative to the folder or absolute; links are followed, and what leads out is refused.
    """

    def __init__(self, root: Path) -> None:
        """Raises ToolError if there is no such folder."""
        if not root.is_dir():
            raise ToolError(f"{root} is no folder")
        self.root = root.resolve()
        self._read: dict[Path, str] = {}

    def resolve(self, path: str) -> Path:
        """The file or folder that a model means, which need not exist. Raises ToolError for one outside."""
        text = path.strip()
        if not text or "\0" in text:
            raise ToolError("the path is empty: give one below the workspace")
        found = Path(os.path.expanduser(text)) if text.startswith("~") else self.root / text
        real = Path(os.path.realpath(found))
        if not real.is_relative_to(self.root):
            raise ToolError(f"{path} lies outside the workspace {self.root}: only files in it can be used")
        if _is_gits(real.relative_to(self.root), real):
            raise ToolError(f"{path} belongs to Git: use git commands instead")
        return real

    def name(self, path: Path) -> str:
        """A path as the model should call it: relative to the folder."""
        relative = path.relative_to(self.root).as_posix()
        return relative if relative != "." else str(self.root)

    def is_secret(self, path: Path) -> bool:
        """Whether a file's name says that there are keys or passwords in it."""
        return is_secret_name(path.name)

    def read(self, path: Path) -> TextFile:
        """A text file, which the agent then knows. Raises ToolError for what is no text, too large, or not there."""
        data = self._read_bytes(path)
        file = _as_text(data)
        if "\0" in file.text[:8192]:
            raise ToolError(f"{self.name(path)} is a binary file ({len(data)} bytes): it cannot be read as text")
        self._read[path] = file.digest
        return file

    def check_known(self, path: Path) -> None:
        """Raise ToolError if the file is there, and the agent has not seen what is in it now."""
        if not path.exists():
            return
        known = self._read.get(path)
        if known is None:
            raise ToolError(f"{self.name(path)} exists, and you have not read it: read it first")
        if _digest(self._read_bytes(path)) != known:
            raise ToolError(f"{self.name(path)} has changed since you read it: read it again")

    def write(self, path: Path, text: str) -> None:
        """Write a text file whole or not at all, with the mode, line ends and encoding that it had.

        Raises ToolError if that cannot be done, or what is there is not known to the agent.
        """
        self.check_known(path)
        if path.exists() and not (path.stat().st_mode & 0o222 and os.access(path, os.W_OK)):
            raise ToolError(f"{self.name(path)} is read-only: leave it, or ask the user")
        form = self.read(path) if path.exists() else TextFile("")
        data = form.encode(text)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_plain(path, data)
        except OSError as error:
            raise ToolError(f"{self.name(path)} cannot be written: {error.strerror}") from error
        self._read[path] = _digest(data)

    @property
    def known(self) -> dict[str, str]:
        """Digests of the files that the agent has read or written, by name."""
        return {self.name(path): digest for path, digest in self._read.items()}

    def remember(self, known: Mapping[str, str]) -> None:
        """What an earlier process knew. Files that changed since are noticed by their digests."""
        self._read.update({self.root / name: digest for name, digest in known.items()})

    def forget(self) -> None:
        """What was read is not known any more: the files were put back to an earlier state."""
        self._read.clear()

    def _read_bytes(self, path: Path) -> bytes:
        name = self.name(path)
        if path.is_dir():
            raise ToolError(f"{name} is a folder: list it with list_directory")
        if path.exists() and not path.is_file():
            raise ToolError(f"{name} is no plain file")
        try:
            size = path.stat().st_size
            data = read_plain(path, MAX_BYTES) if size <= MAX_BYTES else b""
            if max(size, len(data)) > MAX_BYTES:
                raise ToolError(f"{name} has {size >> 20} MiB: look at parts of it with a command such as head or sed")
            return data
        except FileNotFoundError:
            raise ToolError(f"there is no file {name}") from None
        except OSError as error:
            raise ToolError(f"{name} cannot be read: {error.strerror}") from error


def _is_gits(relative: Path, path: Path) -> bool:
    """Whether Git would take a file for its own, in this repository or one within. A folder `.git` can be listed."""
    parts = [part.casefold() for part in relative.parts]
    return ".git" in parts[:-1] or (parts[-1:] == [".git"] and not path.is_dir())


def _as_text(data: bytes) -> TextFile:
    mark, text, encoding = _decode(data)
    newline = _newline(text)
    return TextFile(text.replace("\r\n", "\n") if newline == "\r\n" else text, encoding, newline, mark, _digest(data))


def _decode(data: bytes) -> tuple[bytes, str, str]:
    """The byte order mark, the text and its encoding: one that gives the same bytes again."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            with suppress(UnicodeDecodeError):
                return mark, data[len(mark) :].decode(encoding), encoding
    for encoding in ENCODINGS:
        with suppress(UnicodeDecodeError):
            return b"", data.decode(encoding), encoding
    raise AssertionError("latin-1 has a character for every byte")


def _newline(text: str) -> str:
    """CRLF only where all lines have it, and no more than that: in a file with both, each line keeps its own."""
    count = text.count("\n")
    return "\r\n" if count and text.count("\r\n") == count and "\r\r\n" not in text else "\n"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
