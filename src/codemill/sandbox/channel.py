"""Jobs and results over a socket: a JSON header and the raw bytes it speaks of. Nothing is unpickled on either side."""

import json
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from codemill.sandbox.job import Job, Limits
from codemill.sandbox.result import RunResult

_SIZE = struct.Struct("!I")


class ChannelClosedError(Exception):
    """The other side is gone."""


def send(channel: socket.socket, header: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """One message. Raises ChannelClosedError if nobody will read it."""
    encoded = json.dumps({**header, "sizes": [len(blob) for blob in blobs]}).encode()
    try:
        channel.sendall(b"".join([_SIZE.pack(len(encoded)), encoded, *blobs]))
    except OSError as error:
        raise ChannelClosedError(str(error)) from error


def receive(channel: socket.socket) -> tuple[dict[str, Any], list[bytes]]:
    """The next message. Raises ChannelClosedError at the end, TimeoutError if the socket's own timeout passes."""
    (length,) = _SIZE.unpack(_exactly(channel, _SIZE.size))
    header = json.loads(_exactly(channel, length))
    return header, [_exactly(channel, size) for size in header.pop("sizes")]


def _exactly(channel: socket.socket, length: int) -> bytes:
    pieces, missing = [], length
    while missing:
        try:
            piece = channel.recv(min(missing, 1 << 20))
        except TimeoutError:
            raise
        except OSError as error:
            raise ChannelClosedError(str(error)) from error
        if not piece:
            raise ChannelClosedError("the other side closed the connection")
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def send_job(channel: socket.socket, job: Job) -> None:
    """Hand a job over."""
    header = {
        "python": job.source is not None,
        "commands": job.commands,
        "build": job.build,
        "tolerated": job.tolerated,
        "files": list(job.files),
        "collect": job.collect,
        "environment": dict(job.environment),
        "limits": asdict(job.limits),
        "build_limits": asdict(job.build_limits),
    }
    send(channel, header, [job.source or b"", job.stdin, *job.files.values()])


def receive_job(channel: socket.socket) -> Job:
    """The job that the other side handed over."""
    header, (source, stdin, *contents) = receive(channel)
    return Job(
        source=source if header["python"] else None,
        commands=tuple(map(tuple, header["commands"])),
        build=tuple(map(tuple, header["build"])),
        tolerated=tuple(header["tolerated"]),
        files=dict(zip(header["files"], contents, strict=True)),
        stdin=stdin,
        collect=tuple(header["collect"]),
        environment=header["environment"],
        limits=Limits(**header["limits"]),
        build_limits=Limits(**header["build_limits"]),
    )


def send_result(channel: socket.socket, result: RunResult) -> None:
    """Hand a result back."""
    header = {name: value for name, value in vars(result).items() if name not in ("stdout", "stderr", "files")}
    texts = [text.encode("utf-8", "surrogatepass") for text in (result.stdout, result.stderr)]
    send(channel, {**header, "files": list(result.files)}, [*texts, *result.files.values()])


def receive_result(channel: socket.socket) -> RunResult:
    """The result that the other side handed back."""
    header, (stdout, stderr, *contents) = receive(channel)
    header["files"] = dict(zip(header["files"], contents, strict=True))
    header["refused"] = tuple(header["refused"])
    return RunResult(stdout=stdout.decode(), stderr=stderr.decode(), **header)
