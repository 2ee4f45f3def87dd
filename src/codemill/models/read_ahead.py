"""Reads the files of a mapped model in the background, before its weights are used."""

import threading
from collections.abc import Sequence

from torch import Tensor

from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.cpu_structs import address
from codemill.models.progress import LARGE_BYTES


def read_ahead(weights: Sequence[Tensor], least_bytes: int = LARGE_BYTES) -> threading.Thread | None:
    """Have the system read mapped weights [...], in their order, and return at once.

    What is in memory already takes no time. Page faults would read the rest too, but in small pieces, each of which is
    waited for. Does nothing for less than `least_bytes`, or where there is no C++ library.
    """
    library = load_cpu_library()
    if library is None or sum(weight.nbytes for weight in weights) < least_bytes:
        return None

    def read() -> None:
        for weight in weights:
            library.request_pages(address(weight), weight.nbytes)

    thread = threading.Thread(target=read, name="read-ahead", daemon=True)
    thread.start()
    return thread
