"""Fetching from the Hub: against a small one on this machine, and with each way to fail."""

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, errors

from codemill import hub, spec
from codemill.errors import CodemillError, UsageError
from codemill.models import load_model, save_pretrained
from models.reference import make_ours, make_reference

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Larger than what the library writes at a time, so that there is something to resume.
FILES = {"config.json": b'{"a": 1}', "model.safetensors": bytes(range(256)) * (1 << 16), "README.md": b"not wanted"}
SCRIPT = """
import sys
from codemill.errors import CodemillError
from codemill.hub import fetch
for repo_id in sys.argv[1:]:
    try:
        print(fetch(repo_id, ["*.json", "*.safetensors"]))
    except CodemillError as error:
        print("error:", error)
"""


class FakeHub(BaseHTTPRequestHandler):
    """The few endpoints that a snapshot needs. The first answer with weights breaks off."""

    protocol_version = "HTTP/1.1"

    def __init__(self, ranges: list[str], *arguments: Any) -> None:
        self.ranges = ranges
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].removeprefix("/api/models")
        if not path.startswith("/org/model"):
            code = "GatedRepo" if "gated" in path else "RepoNotFound"
            self.answer(403 if code == "GatedRepo" else 404, b"{}", {"X-Error-Code": code})
        elif "/resolve/" in path:
            self.send_content(FILES[path.rpartition("/")[2]])
        elif "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": name} for name, content in FILES.items()
            ]
            self.answer(200, json.dumps(entries).encode())
        else:
            self.answer(200, json.dumps({"id": "org/model", "sha": COMMIT, "siblings": []}).encode())

    def send_content(self, content: bytes) -> None:
        headers = {"ETag": f'"{len(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if self.command == "GET" and wanted and content == FILES["model.safetensors"]:
            self.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(206, content[start:], headers)
        elif self.command == "GET" and content == FILES["model.safetensors"]:
            self.answer(200, content, headers, sent=len(content) * 3 // 4)
            self.close_connection = True
        else:
            self.answer(200, content, headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:sent])


@pytest.fixture
def ranges() -> list[str]:
    """The Range headers that the fake hub saw."""
    return []


@pytest.fixture
def endpoint(ranges: list[str]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(FakeHub, ranges)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch_elsewhere(home: Path, endpoint: str, *repo_ids: str, offline: bool = False) -> list[str]:
    """What `fetch` returns or raises in a process of its own, since the library reads its environment at import."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-c", SCRIPT, *repo_ids]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def test_fetch_resumes_caches_and_works_offline(tmp_path: Path, endpoint: str, ranges: list[str]) -> None:
    found, missing, gated = fetch_elsewhere(tmp_path, endpoint, "org/model", "org/other", "org/gated")
    assert {path.name: path.read_bytes() for path in Path(found).iterdir()} == {
        name: content for name, content in FILES.items() if name != "README.md"
    }
    assert ranges == [f"bytes={constants.DOWNLOAD_CHUNK_SIZE}-"]
    assert missing == (
        f"error: org/other: no such model at {endpoint}/org/other, or it is private (`hf auth login`); "
        "nor is there such a directory"
    )
    assert gated.startswith(f"error: org/gated: access is gated: accept its terms at {endpoint}/org/gated")

    cached, absent = fetch_elsewhere(tmp_path, endpoint, "org/model", "org/other", offline=True)
    assert cached == found
    assert absent.startswith("error: HF_HUB_OFFLINE is set and org/other is not complete in ")

    nowhere = "http://127.0.0.1:9"
    cached, absent = fetch_elsewhere(tmp_path, nowhere, "org/model", "org/other")
    assert cached == found
    assert absent.startswith(f"error: cannot reach {nowhere}, and org/other is not complete in ")


def raising(error: BaseException) -> Callable[..., str]:
    def snapshot_download(*_: object, **__: object) -> str:
        raise error

    return snapshot_download


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left in .*set HF_HOME to a larger disk"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left in "),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot write to .*: set HF_HOME"),
        (ConnectionResetError("reset by peer"), r"the download broke off \(reset by peer\): run again to resume"),
        (errors.HTTPError("read timed out.\nsecond line"), r"broke off \(read timed out\): run again"),
        (RuntimeError(""), r"broke off \(RuntimeError\)"),
        (errors.LocalEntryNotFoundError("x"), "cannot reach https?://.*, and org/model is not complete in "),
    ],
)
def test_failures(monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", raising(error))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(CodemillError, match=expected) as caught:
        hub.fetch("org/model", ["*.json"])
    assert "\n" not in str(caught.value)
    assert "org/model" in str(caught.value)


def test_a_refusal_by_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(errors.HfHubHTTPError):
        def __init__(self) -> None:
            Exception.__init__(self, "503 Server Error")

    monkeypatch.setattr("huggingface_hub.snapshot_download", raising(Refused()))
    with pytest.raises(CodemillError, match=r"org/model: .* refused the download \(503 Server Error\): try again"):
        hub.fetch("org/model", ["*.json"])


@pytest.mark.parametrize("repo_id", ["org/a--b", "org/a..b", "org/model.git", "a/b/c"])
def test_an_id_that_cannot_be_one(repo_id: str) -> None:
    with pytest.raises(UsageError, match=f"{repo_id!r} cannot be a repository id"):
        hub.fetch(repo_id, ["*.json"])


def test_a_model_is_loaded_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = make_ours(make_reference("qwen3"))
    save_pretrained(ours, tmp_path)
    asked: list[tuple[str, ...]] = []

    def fetch(repo_id: str, allow_patterns: tuple[str, ...]) -> Path:
        assert repo_id == "org/model"
        asked.append(allow_patterns)
        return tmp_path

    monkeypatch.setattr(spec, "fetch", fetch)
    input_ids = torch.arange(9)[None]
    assert torch.equal(load_model("org/model")(input_ids), ours(input_ids))
    small, all_files = asked
    assert "config.json" in small
    assert not any("safetensors" in pattern for pattern in small)
    assert "model*.safetensors" in all_files
