"""An MCP server for tests, made with the SDK: `python mcp_example.py stdio`, or `http PORT`."""

import os
import sys
import time

from mcp.server.mcpserver import Image, MCPServer
from pydantic import BaseModel

server = MCPServer("example")


class Point(BaseModel):
    x: int
    y: int


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def norm(point: Point) -> int:
    """x + y."""
    return point.x + point.y


@server.tool(description="long " * 500)
def environment() -> str:
    return "\n".join(f"{name}={value}" for name, value in os.environ.items())


@server.tool()
def fail() -> str:
    """Always fails."""
    raise ValueError("it failed on purpose")


@server.tool()
def picture() -> Image:
    """A picture."""
    return Image(data=b"12345678", format="png")


@server.tool()
def sleep(seconds: float) -> str:
    """Takes its time."""
    time.sleep(seconds)
    return "awake"


@server.tool()
def die() -> str:
    """Ends the server."""
    os._exit(3)


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run("stdio")
    else:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
