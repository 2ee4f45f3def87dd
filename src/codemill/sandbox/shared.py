"""The pools that `codemill.sandbox.run` uses: started once, ended with this process."""

import atexit
import os
import threading

from codemill.sandbox.pool import SandboxPool

_lock = threading.Lock()
_pools: dict[tuple[int, bool], SandboxPool] = {}


def shared_pool(unsafe: bool) -> SandboxPool:
    """The pool of this process; one that was inherited by a fork is not used."""
    key = (os.getpid(), unsafe)
    with _lock:
        if key not in _pools:
            _pools[key] = SandboxPool(unsafe=unsafe)
            atexit.register(_pools[key].close)
        return _pools[key]
