"""The entry of a replica's process. No torch here: the process has to listen before it loads anything."""

import os
import queue
import signal
import threading
from multiprocessing.connection import Connection

from codemill.engine.replica_messages import ReplicaOptions, ToReplica


def run_replica(connection: Connection, options: ReplicaOptions) -> None:
    """Serve until told to close, or until the other end of the pipe is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    messages: queue.SimpleQueue[ToReplica] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, messages), daemon=True).start()
    from codemill.engine.replica_server import serve

    serve(connection, messages, options)


def _read(connection: Connection, messages: "queue.SimpleQueue[ToReplica]") -> None:
    """Take messages in at all times; whoever started this process is not to be outlived, however it ended."""
    while True:
        try:
            messages.put(connection.recv())
        except (EOFError, OSError):
            os._exit(1)
