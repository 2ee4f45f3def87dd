"""A suite's problems: from a file the user names, from the suite's public home, or from the suite itself."""

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

from codemill.errors import CodemillError, UsageError
from codemill.eval.suite import DataSource, Problem, Suite

_BLOCK = 1 << 18
_TIMEOUT = 30.0  # seconds without a byte


@runtime_checkable
class _MakesItsOwn(Protocol):
    """A suite whose problems come with the package."""

    def builtin(self) -> list[Problem]: ...


@dataclass(frozen=True)
class Dataset:
    """The problems to be judged. path: the file or folder they come from, None for built-in ones."""

    problems: Sequence[Problem]
    path: Path | None = None

    def first(self, limit: int | None) -> "Dataset":
        """Only the first so many; None means all."""
        return Dataset(self.problems[:limit], self.path)

    @cached_property
    def sha256(self) -> str:
        """Of all that the problems hold, whatever file they stood in."""
        digest = hashlib.sha256()
        for problem in self.problems:
            line = json.dumps([problem.task_id, dict(problem.fields)], sort_keys=True, default=repr)
            digest.update(line.encode("ascii") + b"\n")
        return digest.hexdigest()


def load_dataset(suite: Suite, data: Path | None = None) -> Dataset:
    """The problems of `data`, or of the suite's own source without it.

    Raises UsageError for a path that does not exist, CodemillError for a file in another format, for one without a
    problem, and if the data cannot be fetched.
    """
    path = _find(suite, data)
    problems = suite.load(path) if path is not None else _builtin(suite)
    if not problems:
        raise CodemillError(f"{path or suite.title} holds no problem")
    return Dataset(problems, path)


def _find(suite: Suite, data: Path | None) -> Path | None:
    if data is not None:
        path = data.expanduser()
        if not path.exists():
            raise UsageError(f"--data {data}: there is no such file or folder")
        return path
    return None if isinstance(suite, _MakesItsOwn) else fetch(suite.source(), suite.title)


def _builtin(suite: Suite) -> list[Problem]:
    assert isinstance(suite, _MakesItsOwn)
    return suite.builtin()


def fetch(source: DataSource, title: str) -> Path:
    """The local copy of a data set, downloaded if it is not in the cache. Raises CodemillError if that fails."""
    if source.repo_id is not None:
        return _from_hub(source.repo_id, source.filename, title)
    if source.url is not None:
        return _from_url(source.url, title)
    raise UsageError(f"{title} has no public home to fetch from: name its data with --data PATH")


def _from_hub(repo_id: str, filename: str | None, title: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        if filename is None:
            return Path(huggingface_hub.snapshot_download(repo_id, repo_type="dataset"))
        return Path(huggingface_hub.hf_hub_download(repo_id, filename, repo_type="dataset"))
    # HTTPError is the base class of the HTTP library that huggingface_hub uses; hf_xet raises RuntimeError.
    except (OSError, errors.HTTPError, ValueError, RuntimeError) as error:
        where = "/".join(filter(None, ["datasets", repo_id, filename]))
        raise _failed(title, f"{where} from the Hugging Face Hub", error) from error


def _from_url(url: str, title: str) -> Path:
    name = url.rstrip("/").rpartition("/")[2].partition("?")[0]
    target = cache_directory() / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    if target.exists():
        return target
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, partial.open("wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            received = _copy(response, file, size, name)
        if size and received != size:
            raise OSError(f"it broke off after {received} of {size} bytes")
        os.replace(partial, target)
    except (OSError, ValueError) as error:  # URLError is an OSError; ValueError: what is no URL, or no length
        raise _failed(title, url, error) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _copy(response: IO[bytes], file: IO[bytes], size: int, name: str) -> int:
    """Copy all there is, with a bar on a terminal, and return the number of bytes."""
    import sys

    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=sys.stderr)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(name, total=size or None)
        received = 0
        while block := response.read(_BLOCK):
            file.write(block)
            received += len(block)
            progress.update(task, completed=received)
    return received


def cache_directory() -> Path:
    """Where data sets from plain URLs are kept: below XDG_CACHE_HOME, or else `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "codemill" / "datasets"


def _failed(title: str, where: str, error: Exception) -> CodemillError:
    lines = str(error).strip().splitlines()
    reason = lines[0].rstrip(".:") if lines else type(error).__name__
    return CodemillError(f"{title}: cannot fetch {where} ({reason}): give the file with --data PATH")
