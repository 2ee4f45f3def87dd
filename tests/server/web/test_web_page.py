"""The files of the page as the server sends them, and what they must not contain."""

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'codemill[serve]'")

from codemill.server.settings import ServerSettings
from codemill.server.web_page import WEB

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sorted(WEB.glob("*.js"))
# What would make a string that a model wrote into HTML or code of the page's own.
DANGEROUS = (
    r"innerHTML|outerHTML|insertAdjacentHTML|DOMParser|createContextualFragment|\beval\(|new Function|srcdoc|import\("
)


def policy(response) -> dict[str, str]:
    directives = response.headers["content-security-policy"].split(";")
    return dict(directive.strip().partition(" ")[::2] for directive in directives)


def test_the_page_runs_its_own_files_only(serve) -> None:
    response = serve().get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    rules = policy(response)
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert rules["frame-ancestors"] == "'none'"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


def test_the_frame_is_sandboxed_wherever_it_is_opened(serve) -> None:
    rules = policy(serve().get("/static/frame.html"))
    assert rules["sandbox"] == "allow-scripts"
    assert rules["default-src"] == rules["connect-src"] == rules["form-action"] == "'none'"
    assert rules["frame-ancestors"] == "'self'"
    assert not any(
        "http" in sources or "'self'" in sources for name, sources in rules.items() if name != "frame-ancestors"
    )


@pytest.mark.parametrize("path", sorted(WEB.iterdir()), ids=lambda path: path.name)
def test_every_file_is_served_with_its_type(serve, path: Path) -> None:
    response = serve().get("/" if path.name == "index.html" else f"/static/{path.name}")
    assert response.status_code == 200
    assert response.content == path.read_bytes()
    kinds = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
    assert response.headers["content-type"].startswith(kinds[path.suffix])


def test_a_file_that_the_browser_has_is_not_sent_again(serve) -> None:
    client = serve()
    first = client.get("/static/app.js")
    again = client.get("/static/app.js", headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/static/app.js", headers={"If-None-Match": '"other"'}).status_code == 200


def test_head_says_what_get_would(serve) -> None:
    client = serve()
    head, get = client.head("/"), client.get("/")
    assert head.content == b""
    assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))


@pytest.mark.parametrize(
    "path", ["/static/none.js", "/static/index.html", "/static/..%2fapp.py", "/static/%2e%2e/app.py"]
)
def test_nothing_else_is_served(serve, path: str) -> None:
    assert serve().get(path).status_code == 404


def test_the_page_needs_no_key_but_its_api_does(serve) -> None:
    client = serve(settings=ServerSettings(api_keys=("secret",)))
    for path in ("/", "/static/app.js", "/static/frame.html"):
        assert client.get(path).status_code == 200
    assert client.post("/v1/chat/completions", json={}).status_code == 401


def test_every_file_is_in_the_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["codemill"]
    for path in WEB.iterdir():
        name = path.relative_to(ROOT / "src" / "codemill").as_posix()
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_html_or_code_of_text(script: Path) -> None:
    assert re.search(DANGEROUS, script.read_text()) is None


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_a_script_imports_or_looks_up_exists(script: Path) -> None:
    source, page = script.read_text(), (WEB / "index.html").read_text()
    for name in re.findall(r'from "\./([\w.]+)"', source):
        assert (WEB / name).is_file(), name
    for name in re.findall(r'byId\("([\w-]+)"\)', source):
        assert f'id="{name}"' in page, name
    for name in re.findall(r'\bicon(?:Button)?\("([\w-]+)"', source):
        assert f'id="icon-{name}"' in page, name


def test_the_page_asks_no_other_server_for_anything() -> None:
    page = (WEB / "index.html").read_text()
    for address in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert address.startswith(("static/", "#")), address
