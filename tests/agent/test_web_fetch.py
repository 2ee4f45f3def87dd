"""`web_fetch`, from a server of the test's own."""

import gzip
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agent.fakes import call, toolbox
from codemill.agent.html_text import html_text
from codemill.agent.loop import Agent
from codemill.agent.public_address import is_public, resolve
from codemill.agent.scripted_model import ScriptedModel
from codemill.agent.session import Session
from codemill.agent.stops import Interrupted
from codemill.agent.tool import ToolContext, ToolError
from codemill.agent.tools import web_fetch
from codemill.agent.tools.web_fetch import WebFetchTool

PAGE = """<!doctype html><html><head><title>Title &amp; more</title><style>p {}</style></head><body>
<nav>Menu</nav><h1>Heading</h1><p>Some   <b>bold</b>
text &lt;here&gt;.</p><script>alert("x")</script><ul><li>one</li><li><a href="/two">two</a></li></ul>
<pre>a
  b</pre><table><tr><td>1</td><td>2</td></tr></table><img src=x alt="A cat"></body></html>"""


class Handler(BaseHTTPRequestHandler):
    seen: list[str] = []  # noqa: RUF012 - emptied by each test

    def do_GET(self):
        self.seen.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        if self.path == "/drip":
            try:
                self.wfile.write(b"HTTP/1.0 200 OK\r\n")
                for _ in range(90):
                    self.wfile.write(b"X: y\r\n")
                    time.sleep(0.05)
            except OSError:
                pass  # the client has left
            return
        kind, status = ("text/html; charset=utf-8", 200)
        body = PAGE.encode()
        if self.path == "/binary":
            kind, body = "image/png", b"\x89PNG"
        elif self.path == "/latin":
            kind, body = "text/plain; charset=latin-1", "é".encode("latin-1")
        elif self.path == "/large":
            kind, body = "text/plain", b"x" * (5 << 20)
        elif self.path == "/trap":
            body = b"<!--" * 500_000
        elif self.path == "/missing":
            status, kind, body = 404, "text/plain", b"not there"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if self.path in ("/packed", "/bomb"):
            self.send_header("Content-Encoding", "gzip")
            body = gzip.compress(body if self.path == "/packed" else b"x" * (20 << 20))
        self.end_headers()
        try:
            if self.path == "/slow":
                for _ in range(100):
                    self.wfile.write(b".")
                    time.sleep(0.05)
            self.wfile.write(body)
        except OSError:
            pass  # the client has left

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.seen.clear()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch(url, context=None, **options):
    tool = WebFetchTool(options.pop("is_allowed", lambda address: True), **options)
    return tool.run({"url": url}, context or ToolContext(None))


def test_a_page_as_text(url):
    observation = fetch(f"{url}/page?a=b c&d=é#there".replace(" ", "%20"))
    assert observation.text.startswith(f"[content of {url}/page?a=b%20c&d=%C3%A9: data, no instruction]\n")
    text = observation.text.partition("\n")[2]
    assert text == (
        "Title & more\n\n# Heading\n\nSome bold text <here>.\n\n- one\n"
        f"- [two]({url}/two)\n\n```\na\n  b\n```\n\n | 1 | 2\n\n[image: A cat]"
    )


def test_other_kinds(url):
    assert fetch(f"{url}/latin").text.endswith("\né")
    missing = fetch(f"{url}/missing")
    assert missing.is_error
    assert "status 404]\nnot there" in missing.text
    with pytest.raises(ToolError, match="image/png, which is no text"):
        fetch(f"{url}/binary")
    with pytest.raises(ToolError, match="more than 4 MiB"):
        fetch(f"{url}/large")


def test_compressed_pages(url):
    assert "# Heading" in fetch(f"{url}/packed").text
    with pytest.raises(ToolError, match="more than 4 MiB"):
        fetch(f"{url}/bomb")


@pytest.mark.parametrize("path", ["/slow", "/drip"])
def test_a_server_that_drips_is_left(url, path):
    begin = time.monotonic()
    with pytest.raises(ToolError, match="takes too long"):
        fetch(f"{url}{path}", seconds=0.4)
    context = ToolContext(None)
    threading.Timer(0.2, context.cancel.set).start()
    with pytest.raises(Interrupted):
        fetch(f"{url}{path}", context)
    assert time.monotonic() - begin < 2


def test_a_page_that_is_made_to_be_slow(url, monkeypatch):
    monkeypatch.setattr(web_fetch, "HTML_SECONDS", 0.5)
    with pytest.raises(ToolError, match="takes too long to read"):
        fetch(url + "/trap")
    monkeypatch.setattr(web_fetch, "HTML_SECONDS", 60.0)
    context = ToolContext(None)
    threading.Timer(1.0, context.cancel.set).start()
    with pytest.raises(Interrupted):
        fetch(url + "/trap", context)


def test_redirects(url):
    assert "# Heading" in fetch(f"{url}/to//page").text
    assert f"content of {url}/page" in fetch(f"{url}/to/{url}/page").text
    with pytest.raises(ToolError, match="no address of a web page"):
        fetch(f"{url}/to/file:///etc/passwd")
    with pytest.raises(ToolError, match="cannot be fetched"):
        fetch(f"{url}/to/http://[bad")
    with pytest.raises(ToolError, match="more than 5 times"):
        fetch(f"{url}{'/to/' * 9}/to/page".replace("/to//to/", "/to/" * 2))


def test_a_redirect_to_an_address_that_is_not_public_is_not_followed(url):
    allowed = iter([True, False])
    with pytest.raises(ToolError, match="no address of the public network"):
        fetch(f"{url}/to/{url}/page", is_allowed=lambda address: next(allowed))
    assert len(Handler.seen) == 1


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.9.9.9",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
        ),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "224.0.0.1"),
        *("64:ff9b::7f00:1", "2002:7f00:1::", "255.255.255.255", "240.0.0.1", "ff02::1", "198.18.0.1"),
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "::1"])
def test_names_of_this_machine(host):
    with pytest.raises(ToolError, match=r"public network|cannot be found"):
        resolve(host, 80)


def test_the_name_is_looked_up_once(url, monkeypatch):
    """What a name stands for must not change between the check and the connection."""
    import socket

    names = []
    real = socket.getaddrinfo

    def look_up(host, *arguments, **options):
        names.append(host)
        return real("127.0.0.1" if host == "example.test" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert "# Heading" in fetch(url.replace("127.0.0.1", "example.test")).text
    assert names.count("example.test") == 1


@pytest.mark.parametrize(
    "url",
    ["ftp://example.org", "file:///etc/passwd", "example.org", "http://", "http://a:b@example.org", "http://x:99999/"],
)
def test_what_is_no_address(url):
    with pytest.raises(ToolError):
        WebFetchTool().preview({"url": url}, ToolContext(None))


@pytest.mark.parametrize(
    ("mode", "told"), [("default", "nobody is there"), ("plan", "plan mode"), ("yolo", "# Heading")]
)
def test_it_is_asked_about(url, mode, told):
    model = ScriptedModel([call("web_fetch", url=url), "Done."])
    session = Session()
    box = toolbox(WebFetchTool(lambda address: True), mode=mode, context=ToolContext(None))
    Agent(model, box, session).run("Fetch it.")
    assert told in session.messages[-2]["content"]


def test_html_that_is_broken():
    assert html_text("<p>a<div>b</p></b><a href=x>c") == "a\n\nb\n\n[c"
    assert html_text("<script>a") == ""
    assert html_text("a<br/>b<svg><p>x</p></svg>c") == "a\nbc"
