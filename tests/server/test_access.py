from pathlib import Path
from typing import Any

import pytest

from codemill.errors import CodemillError, UsageError
from codemill.server.access import Access, check_keys, read_keys
from codemill.server.settings import ServerSettings, is_loopback
from server.asgi_calls import Answer, Echo, call, make_scope

KEYS = ("first-key", "second-key")


def ask(
    settings: ServerSettings, headers: dict[str, str], method: str = "POST", path: str = "/v1/chat/completions"
) -> Answer:
    return call(Access(Echo(), settings), make_scope(method, path, {"host": "127.0.0.1:8000", **headers}))


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer first-key"},
        {"authorization": "bearer  second-key "},
        {"x-api-key": "second-key"},
        {"authorization": "Bearer other", "x-api-key": "first-key"},
    ],
)
def test_any_of_the_keys_opens(headers: dict[str, str]) -> None:
    assert ask(ServerSettings(api_keys=KEYS), headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer first-ke"},
        {"authorization": "Bearer first-key2"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "first-key"},
        {"authorization": "Basic first-key"},
        {"x-api-key": ""},
        {"x-api-key": "FIRST-KEY"},
        {"x-api-key": "clé"},
    ],
)
def test_no_key_or_a_wrong_one_is_401(headers: dict[str, str]) -> None:
    app = Echo()
    answer = call(Access(app, ServerSettings(api_keys=KEYS)), make_scope(headers=headers))
    assert answer.status == 401
    assert answer.error["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert b"first" not in answer.body
    assert app.scopes == []


def test_errors_have_the_form_of_their_protocol() -> None:
    answer = ask(ServerSettings(api_keys=KEYS), {}, path="/v1/messages")
    assert answer.error["type"] == "authentication_error"
    assert set(answer.error) == {"type", "message"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("POST", "/", 401),
        ("GET", "/metrics", 401),
        ("GET", "/v1/models", 401),
        ("GET", "/health/", 401),
        ("OPTIONS", "/v1/models", 401),
    ],
)
def test_without_a_key_only_health_and_the_page_are_open(method: str, path: str, status: int) -> None:
    assert ask(ServerSettings(api_keys=KEYS), {}, method, path).status == status


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8000",
        "localhost:8000",
        "LOCALHOST",
        "[::1]:8000",
        "192.168.1.7:8000",
        "codemill:8000",
        "box.local",
        "host.docker.internal:8000",
        "chat.example.com",
        "Chat.Example.Com.",
    ],
)
def test_names_that_are_this_machines_are_served(host: str) -> None:
    settings = ServerSettings(allowed_hosts=("chat.example.com",))
    assert call(Access(Echo(), settings), make_scope(headers={"host": host})).status == 200


@pytest.mark.parametrize("host", ["evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:8000", "a.b"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_strangers_name_is_refused(host: str, method: str) -> None:
    """DNS rebinding: a page of evil.example has that name point to 127.0.0.1, and may read what it answers."""
    answer = ask(ServerSettings(), {"host": host}, method, "/v1/models")
    assert answer.status == 403
    assert "--allowed-host" in answer.error["message"]


def test_with_keys_any_name_will_do() -> None:
    headers = {"host": "chat.example.com", "x-api-key": "first-key"}
    assert ask(ServerSettings(api_keys=KEYS), headers).status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:3000", "null", "http://localhost:8000"])
def test_a_foreign_page_may_not_post(origin: str) -> None:
    app = Echo()
    scope = make_scope(headers={"host": "127.0.0.1:8000", "origin": origin, "content-type": "text/plain"})
    answer = call(Access(app, ServerSettings()), scope)
    assert answer.status == 403
    assert f"--cors {origin}" in answer.error["message"]
    assert app.scopes == []
    assert "access-control-allow-origin" not in answer.headers


def test_the_servers_own_page_may_post() -> None:
    assert ask(ServerSettings(), {"origin": "http://127.0.0.1:8000"}).status == 200
    assert ask(ServerSettings(), {"origin": "https://box.local", "host": "box.local"}).status == 200


CORS = ServerSettings(cors_origins=("https://chat.example.com",))


def test_a_listed_page_may_post_and_read() -> None:
    answer = ask(CORS, {"origin": "https://chat.example.com"})
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://chat.example.com"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert answer.headers["vary"] == "origin"
    assert ask(CORS, {"origin": "https://chat.example.com.evil.example"}).status == 403


def test_a_page_may_read_the_error_too() -> None:
    settings = ServerSettings(api_keys=KEYS, cors_origins=("*",))
    answer = ask(settings, {"origin": "https://any.example"})
    assert answer.status == 401
    assert answer.headers["access-control-allow-origin"] == "https://any.example"


@pytest.mark.parametrize("keys", [(), KEYS])
def test_a_preflight_needs_no_key(keys: tuple[str, ...]) -> None:
    settings = ServerSettings(api_keys=keys, cors_origins=("https://chat.example.com",))
    asked: dict[str, str] = {
        "origin": "https://chat.example.com",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
        "access-control-request-private-network": "true",
    }
    answer = ask(settings, asked, "OPTIONS")
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "https://chat.example.com"
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-private-network"] == "true"
    refused = ask(settings, {**asked, "origin": "https://evil.example"}, "OPTIONS")
    assert "access-control-allow-origin" not in refused.headers


def test_keys_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# of the team\none\n\n  two  \n")
    assert read_keys(path) == ["one", "two"]
    path.write_text("# none\n")
    with pytest.raises(UsageError, match="no API key"):
        read_keys(path)
    with pytest.raises(CodemillError, match="cannot read"):
        read_keys(tmp_path / "missing")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CodemillError, match="UTF-8"):
        read_keys(path)


@pytest.mark.parametrize("key", ["", "a b", "clé", "a\nb"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(UsageError):
        check_keys(["good", key])


def test_keys_count_once() -> None:
    assert check_keys(["a", "b", "a"]) == ("a", "b")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "192.168.1.7", "example.com", "")],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_body_bytes": 0},
        {"shutdown_seconds": -1.0},
        {"log_format": "xml"},
        {"max_request_seconds": 0.0},
        {"header_seconds": float("nan")},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        ServerSettings(**wrong)
