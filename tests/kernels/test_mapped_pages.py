"""Pages of mapped files that are asked for come into memory without being touched."""

import ctypes
import mmap
import os
import time
from pathlib import Path

import numpy as np
import pytest

from codemill.kernels.cpu_library import load_cpu_library

PAGE = mmap.PAGESIZE
SIZE = 300 * PAGE + 17

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="asks Linux what is in memory")


def resident(mapped: np.ndarray) -> np.ndarray:
    """For each page of a mapped file whether it is in memory."""
    pages = np.zeros(-(-mapped.size // PAGE), dtype=np.uint8)
    status = ctypes.CDLL(None).mincore(
        ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(mapped.size), ctypes.c_void_p(pages.ctypes.data)
    )
    assert status == 0
    return (pages & 1).astype(bool)


def mapped_file(path: Path) -> np.ndarray:
    """A mapped file none of whose pages are in memory."""
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=np.uint8)
    if resident(mapped).any():
        pytest.skip("this file system keeps its files in memory")
    return mapped


@pytest.mark.parametrize(("begin", "size"), [(0, SIZE), (PAGE + 5, 250 * PAGE), (3 * PAGE - 1, 2)])
def test_requested_pages_are_read(tmp_path: Path, begin: int, size: int) -> None:
    library = load_cpu_library()
    if library is None:
        pytest.skip("needs a C++ compiler at installation")
    mapped = mapped_file(tmp_path / "file")
    library.request_pages(mapped.ctypes.data + begin, size)
    wanted = slice(begin // PAGE, (begin + size - 1) // PAGE + 1)
    deadline = time.monotonic() + 30
    while not resident(mapped)[wanted].all():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert resident(mapped).sum() == wanted.stop - wanted.start
