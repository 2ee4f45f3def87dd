"""Where problems come from, and what is said when they do not come."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.eval import dataset
from codemill.eval.dataset import Dataset, fetch, load_dataset
from codemill.eval.suite import DataSource, Problem, SuiteOptions
from eval.tiny import TinySuite, records, write_lines


class Builtin(TinySuite):
    """A suite that makes its own problems."""

    def builtin(self) -> list[Problem]:
        return [Problem("own/1", {})]


class _Files(BaseHTTPRequestHandler):
    """Serves `content` at any path but /missing; `cut` bytes of it are withheld."""

    content: ClassVar[bytes] = b'{"task_id": 1}\n' * 1000
    cut: ClassVar[int] = 0
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[: len(self.content) - self.cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_Files, "requests", [])
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()


def test_a_file_and_its_first_problems(tmp_path: Path) -> None:
    found = load_dataset(TinySuite(), write_lines(tmp_path / "data.jsonl", records(5)))
    assert [problem.task_id for problem in found.problems] == [f"T/{i}" for i in range(5)]
    assert [problem.task_id for problem in found.first(2).problems] == ["T/0", "T/1"]
    assert found.first(99).problems == found.problems


def test_the_digest_is_of_the_problems() -> None:
    one, two = (Problem(f"T/{i}", {"prompt": "x", "raw": b"\0"}) for i in (1, 2))
    assert Dataset([one]).sha256 == Dataset([Problem("T/1", {"raw": b"\0", "prompt": "x"})], Path("elsewhere")).sha256
    assert len({Dataset(each).sha256 for each in ([one], [two], [one, two], [two, one], [])}) == 5


def test_built_in_problems_need_no_data_but_a_path_wins(tmp_path: Path) -> None:
    assert [p.task_id for p in load_dataset(Builtin()).problems] == ["own/1"]
    assert len(load_dataset(Builtin(), write_lines(tmp_path / "d", records(2))).problems) == 2


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        load_dataset(TinySuite(), tmp_path / "nowhere")


def test_data_without_problems(tmp_path: Path) -> None:
    with pytest.raises(CodemillError, match="holds no problem"):
        load_dataset(TinySuite(), write_lines(tmp_path / "empty", []))


def test_a_suite_without_a_public_home() -> None:
    with pytest.raises(UsageError, match=r"Tiny has no public home .* --data PATH"):
        load_dataset(TinySuite(SuiteOptions()))


def test_a_url_is_fetched_once(server: str) -> None:
    path = fetch(DataSource(url=f"{server}/set.jsonl?download=1"), "Tiny")
    assert path.read_bytes() == _Files.content
    assert path.name.endswith("-set.jsonl")
    assert fetch(DataSource(url=f"{server}/set.jsonl?download=1"), "Tiny") == path
    assert len(_Files.requests) == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("cut", [1, 5000])
def test_a_download_that_breaks_off_leaves_nothing(server: str, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    monkeypatch.setattr(_Files, "cut", cut)
    with pytest.raises(CodemillError, match=r"Tiny: cannot fetch .* give the file with --data PATH") as caught:
        fetch(DataSource(url=f"{server}/set.jsonl"), "Tiny")
    assert "\n" not in str(caught.value)
    assert list(dataset.cache_directory().iterdir()) == []
    monkeypatch.setattr(_Files, "cut", 0)
    assert hashlib.sha256(fetch(DataSource(url=f"{server}/set.jsonl"), "Tiny").read_bytes()).digest()


@pytest.mark.parametrize("url", ["{server}/missing", "http://127.0.0.1:1/x", "no-url", "http://host.invalid/x"])
def test_a_url_without_an_answer(server: str, url: str) -> None:
    with pytest.raises(CodemillError, match=r"^Tiny: cannot fetch .*: give the file with --data PATH$"):
        fetch(DataSource(url=url.format(server=server)), "Tiny")


@pytest.mark.parametrize("filename", ["data.jsonl", None])
def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, filename: str | None) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CodemillError, match=r"^Tiny: cannot fetch datasets/org/set.* Hub .*--data PATH$") as caught:
        fetch(DataSource(repo_id="org/set", filename=filename), "Tiny")
    assert "\n" not in str(caught.value)
