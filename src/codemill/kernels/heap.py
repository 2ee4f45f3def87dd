"""The C library's heap, which hands a forward pass its activations."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_KEPT_BYTES = 1 << 30
_LARGEST_MMAP_THRESHOLD = 1 << 25


def keep_freed_memory() -> None:
    """Let glibc keep freed activations for the next layer instead of returning them to the system.

    By default it returns them over and over, and each layer faults its pages in again: 5 % of a prefill. Does nothing
    where the C library is another one.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)


def keep_all_freed_memory() -> None:
    """As `keep_freed_memory`, whatever its size: a step of training allocates what the one before it freed.

    glibc maps arrays of over 32 MB anew each time. The gradients of stacked experts are such arrays, and their pages,
    zeroed by the system one by one, took a fifth of a step.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
        libc.mallopt(_M_MMAP_MAX, 0)


def give_back_memory() -> None:
    """Return freed memory to the system after all, as when a model was unloaded."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
