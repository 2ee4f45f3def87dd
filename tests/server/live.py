"""The application on 127.0.0.1, in a thread."""

import threading
import time

import uvicorn

from codemill.server.app import create_app
from codemill.server.registry import Registry
from codemill.server.settings import ServerSettings


class LiveServer:
    """The application in a thread, until `stop`."""

    def __init__(self, registry: Registry, settings: ServerSettings) -> None:
        config = uvicorn.Config(
            create_app(registry, settings), host="127.0.0.1", port=0, log_level="warning", lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.005)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
