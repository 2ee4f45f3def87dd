"""`codemill serve`: its arguments, and real processes that serve tiny models until they are told to end."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import peft
import pytest

from codemill.commands.serve_models import define_models
from codemill.engine_config import SpeculativeConfig
from codemill.errors import CodemillError, UsageError
from commands.conftest import CONTEXT, VOCAB_SIZE, Run
from models.reference import make_reference
from server.logging_state import restored_logging

KEY = "a-secret-key"
PROMPT = "my very own prompt"
CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    with restored_logging():
        yield


@pytest.fixture(scope="module")
def endless_directory(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a context that takes minutes to fill."""
    folder = tmp_path_factory.mktemp("models") / "endless"
    shutil.copytree(model_directory, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 500_000}))
    return folder


@pytest.fixture(scope="module")
def adapter_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    reference = make_reference("qwen3", vocab_size=VOCAB_SIZE, max_position_embeddings=CONTEXT)
    settings = {"r": 4, "lora_alpha": 16, "init_lora_weights": False, "target_modules": ["q_proj", "v_proj"]}
    peft.get_peft_model(reference, peft.LoraConfig(**settings)).save_pretrained(folder)
    return folder


class Served:
    """A server in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self.process = process
        self._log = log
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, self.log
        self.ready: dict[str, Any] = json.loads(line)
        self.url: str = self.ready["url"]
        self.client = httpx.Client(base_url=self.url, timeout=30, headers={"authorization": f"Bearer {KEY}"})

    @property
    def log(self) -> str:
        return self._log.read_text()

    def chat(self, model: str = "", max_tokens: int = 8, **options: Any) -> httpx.Response:
        return self.client.post(CHAT, json={**chat_body(model, max_tokens), **options})

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


def chat_body(model: str = "", max_tokens: int = 8, stream: bool = False) -> dict[str, Any]:
    messages = [{"role": "user", "content": PROMPT}]
    return {"model": model, "max_tokens": max_tokens, "temperature": 0, "stream": stream, "messages": messages}


@contextmanager
def served(log: Path, *arguments: str | Path, **environment: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "codemill", "serve", *map(str, arguments)]
    options = ("--port", "0", "--json", "--dtype", "float32", "--threads", "1", "--kv-cache-gib", "0.2")
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=errors, text=True, env=variables
        )
    try:
        yield Served(process, log)
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture(scope="module")
def server(
    endless_directory: Path, model_directory: Path, adapter_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "keys").write_text(f"# the team's\nanother-key\n{KEY}\n")
    models = (endless_directory, "--model", f"small={model_directory}", "--lora", f"sql={adapter_directory}@small")
    access = ("--api-key-file", folder / "keys", "--cors", "https://chat.example.com/")
    limits = ("--shutdown-seconds", "1", "--log-format", "json", "--max-body-mib", "0.1")
    with served(folder / "log", *models, *access, *limits, "--served-model-name", "coder") as server:
        yield server


def test_it_says_where_it_is(server: Served) -> None:
    assert server.ready == {
        "url": server.url,
        "pid": server.process.pid,
        "models": ["coder", "small", "sql"],
        "needs_key": True,
    }
    assert server.client.get("/", headers={"authorization": ""}).status_code != 401


def test_models_and_adapters_are_served_by_name(server: Served) -> None:
    texts = {}
    for name in ("coder", "small", "sql"):
        answer = server.chat(name).json()
        assert answer["model"] == name
        texts[name] = answer["choices"][0]["message"]["content"]
    assert texts["coder"] == texts["small"]
    assert texts["sql"] != texts["small"], "the adapter changes nothing"
    assert server.chat("").json()["model"] == "coder"
    missing = server.chat("gpt-4o")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
    assert "coder, small, sql" in missing.json()["error"]["message"]


def test_a_key_is_needed(server: Served) -> None:
    for headers, status in (({"authorization": ""}, 401), ({"authorization": "", "x-api-key": "another-key"}, 200)):
        assert server.client.post(CHAT, json=chat_body(), headers=headers).status_code == status


def test_a_listed_page_may_read_answers(server: Served) -> None:
    origin = "https://chat.example.com"
    headers = {"origin": origin, "access-control-request-method": "POST", "authorization": ""}
    assert server.client.options(CHAT, headers=headers).headers["access-control-allow-origin"] == origin


def test_a_body_too_large_takes_nobody_down(server: Served) -> None:
    assert server.client.post(CHAT, content=b"x" * 200_000).status_code == 413
    assert server.chat().status_code == 200


def test_the_log_has_a_line_a_request_and_no_secret(server: Served) -> None:
    answer = server.chat("small", max_tokens=5)
    identity = answer.headers["x-request-id"]
    wait_for(lambda: identity in server.log)
    lines = [json.loads(line) for line in server.log.splitlines()]
    (line,) = [line for line in lines if line.get("id") == identity]
    assert (line["path"], line["status"], line["model"], line["completion_tokens"]) == (CHAT, 200, "small", 5)
    assert line["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert line["seconds"] >= line["ttft_seconds"] > 0
    for secret in (PROMPT, KEY, "another-key", answer.json()["choices"][0]["message"]["content"]):
        assert secret not in server.log


def wait_for(condition: Any, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it does not come true"
        time.sleep(0.01)


def test_a_stream_that_outlasts_the_shutdown_ends_properly(server: Served) -> None:
    """The last of this server."""
    with server.client.stream("POST", CHAT, json=chat_body(max_tokens=400_000, stream=True)) as stream:
        lines = stream.iter_lines()
        while '"content":"' not in next(lines):
            pass
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
        assert 0.5 < time.monotonic() - begin < 8
    assert rest[-1] == "data: [DONE]"
    reasons = [json.loads(line[6:])["choices"][0]["finish_reason"] for line in rest[:-1]]
    assert reasons[-1] in ("stop", "length")
    assert server.process.wait(10) == 0
    assert "cut short: 1" in server.log


def test_a_short_request_finishes_and_a_second_signal_ends_at_once(endless_directory: Path, tmp_path: Path) -> None:
    with served(tmp_path / "log", endless_directory, "--log-prompts") as server:
        assert server.ready["models"] == ["endless"]
        assert server.ready["needs_key"] is False
        assert server.chat("gpt-4o").json()["model"] == "endless"
        wait_for(lambda: PROMPT in server.log)
        with server.client.stream("POST", CHAT, json=chat_body(max_tokens=400_000, stream=True)) as stream:
            lines = stream.iter_lines()  # which ends the request once nobody refers to it
            next(lines)
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            assert server.process.poll() is None
            begin = time.monotonic()
            assert server.end(signal.SIGINT) == 130
            assert time.monotonic() - begin < 2


LOADING = """
import sys, time
from codemill.server.http_server import run_server
from codemill.server.listening import open_sockets
from codemill.server.model_entry import ModelDefinition
from codemill.server.registry import Registry
from codemill.server.settings import ServerSettings

def load(definition):
    print("loading", flush=True)
    time.sleep(60)

run_server(None, Registry([ModelDefinition("x")], load), ServerSettings(), open_sockets("127.0.0.1", 0))
"""


def test_a_signal_while_a_model_loads_ends_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", LOADING], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"loading\n"
        begin = time.monotonic()
        process.terminate()
        assert process.wait(10) == 0
        assert time.monotonic() - begin < 2
        assert process.stderr.read() == b""


def test_a_model_that_cannot_be_loaded_is_one_line(codemill: Run, model_directory: Path) -> None:
    outcome = codemill("serve", model_directory, "--max-model-len", "999999", "--port", "0")
    assert outcome.status == 1
    assert [line for line in outcome.err.splitlines() if " info " not in line] == [outcome.err.splitlines()[-1]]
    assert outcome.err.splitlines()[-1].startswith("codemill: error: the model ")
    assert "max_model_len = 999999" in outcome.err


def test_a_port_in_use_is_one_line(codemill: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        outcome = codemill("serve", "--port", str(other.getsockname()[1]))
    assert outcome.status == 1
    assert "is in use" in outcome.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--host", "::"], "--api-key"),
        (["no/such/model/here"], "no such directory"),
        (["--model", "small=no/such/model/here"], "no such directory"),
        (["--model", "small="], "NAME=SPEC"),
        (["--lora", "sql"], "NAME=DIRECTORY"),
        (["--lora", "sql=/nowhere"], "adapter_config.json"),
        (["--lora", "sql=/nowhere@other"], "other"),
        (["--api-key", "two words"], "API key"),
        (["--cors", "chat.example.com"], "--cors"),
        (["--idle-unload", "0"], "--idle-unload"),
        (["--kv-cache-gib", "-1"], "--kv-cache-gib"),
        (["--max-body-mib", "0"], "max_body_bytes"),
        (["--log-format", "xml"], "log_format"),
        (["--kv-cache-dtype", "int3"], "kv_cache_dtype"),
        (["--speculative", "magic"], "--speculative"),
        (["--port", "99999"], "--port 99999"),
        (["--model", "embedded", "--model", "embedded"], "'embedded'"),
    ],
)
def test_a_wrong_argument_is_one_line(codemill: Run, arguments: list[str], message: str) -> None:
    outcome = codemill("serve", *arguments)
    assert outcome.status == 2
    assert message in outcome.error


def test_a_key_file_that_is_not_there_is_one_line(codemill: Run, tmp_path: Path) -> None:
    outcome = codemill("serve", "--api-key-file", tmp_path / "keys")
    assert outcome.status == 1
    assert "cannot read the API keys" in outcome.error


def test_without_the_extra_it_says_what_to_install(codemill: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    outcome = codemill("serve")
    assert outcome.status == 1
    assert "codemill[serve]" in outcome.error


def test_the_first_model_is_the_spec_or_the_first_of_the_others(model_directory: Path, tmp_path: Path) -> None:
    model = str(model_directory)
    name = model_directory.name
    assert [each.name for each in define_models(None, [], [], [])] == ["embedded"]
    assert [each.name for each in define_models(model, [f"a={model}"], [], [])] == [name, "a"]
    assert [each.name for each in define_models(None, [f"a={model}", "embedded"], [], [])] == ["a", "embedded"]
    (named,) = define_models(model, [], [], ["coder", "gpt-4o", "gpt-4o"])
    assert (named.name, named.aliases, named.spec) == ("coder", ("gpt-4o",), model)
    odd = tmp_path / "a=b@c"
    odd.symlink_to(model_directory)
    (named,) = define_models(None, [str(odd)], [], [])
    assert named.spec == str(odd)


def test_adapters_are_of_the_model_that_they_name(model_directory: Path, adapter_directory: Path) -> None:
    models = [f"a={model_directory}", f"b={model_directory}"]
    loras = [f"one={adapter_directory}", f"two={adapter_directory}@b"]
    first, second = define_models(None, models, loras, [])
    assert dict(first.adapters) == {"one": adapter_directory}
    assert dict(second.adapters) == {"two": adapter_directory}
    with pytest.raises(UsageError, match="one"):
        define_models(None, models, [loras[0], loras[0]], [])


def test_a_draft_is_for_the_first_model_only() -> None:
    for how, expected in (("ngram", [True, True]), ("draft=random:qwen3-0.6b", [True, False])):
        models = define_models("embedded", ["other=random:qwen3-0.6b"], [], [], how)
        assert [isinstance(each.options.get("speculative"), SpeculativeConfig) for each in models] == expected


def test_a_broken_model_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CodemillError, match=r"config\.json"):
        define_models(str(tmp_path), [], [], [])
