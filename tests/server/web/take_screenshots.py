"""Takes the screenshots of docs/web.md: PYTHONPATH=src:tests python tests/server/web/take_screenshots.py docs/images"""

import re
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from codemill.engine.scripted import ScriptedEngine
from codemill.server.registry import Registry
from codemill.server.settings import ServerSettings
from server.conftest import LiveServer
from server.web.conftest import find_chromium
from server.web.pages import answered, ask

FUNCTION = '''One regular expression reads the **date part** and the *time part*; anything else is refused.

```python
import re
from datetime import timedelta

PATTERN = re.compile(r"P(?:(\\d+)D)?(?:T(?:(\\d+)H)?(?:(\\d+)M)?(?:(\\d+)S)?)?")


def parse_duration(text: str) -> timedelta:
    """An ISO 8601 duration such as `P3DT4H`. Raises ValueError for others."""
    match = PATTERN.fullmatch(text)
    if match is None or text.endswith(("P", "T")):
        raise ValueError(f"not a duration: {text!r}")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
```

| input | result | why |
|---|--:|---|
| `P3DT4H` | 76 h | days and hours |
| `P1Y` | error | years have no fixed length |
'''
PAGE = """Laps are listed below the time. It counts with `performance.now()`, so it does not drift.

```html
<!DOCTYPE html>
<html lang="en">
<head>
<title>Stopwatch</title>
<style>
  body { display: grid; place-items: center; min-height: 95vh; margin: 0; background: BACKGROUND; }
  main { width: 20rem; text-align: center; font: 1rem system-ui; }
  output { font: 300 5rem system-ui; font-variant-numeric: tabular-nums; }
  button { padding: 0.6rem 1.6rem; border: 0; border-radius: 2rem; background: #1f6f54; color: #fff; font: inherit; }
  li { padding: 0.4rem 0; border-bottom: 1px solid #0002; list-style-position: inside; }
  ol { padding: 0; }
</style>
</head>
<body>
<main>
  <output id="time">0.0</output><br>
  <button id="toggle">Start</button> <button id="lap">Lap</button>
  <ol id="laps"></ol>
</main>
<script>
  let started = null, total = 0;
  const now = () => total + (started === null ? 0 : performance.now() - started);
  setInterval(() => { time.textContent = (now() / 1000).toFixed(1); }, 50);
  toggle.onclick = () => {
    if (started === null) started = performance.now();
    else [total, started] = [now(), null];
    toggle.textContent = started === null ? "Start" : "Stop";
  };
  lap.onclick = () => {
    const item = document.createElement("li");
    item.textContent = `${(now() / 1000).toFixed(2)} s`;
    laps.append(item);
  };
</script>
</body>
</html>
```
"""


def answer(prompt: str) -> str:
    question = re.findall(r"<.im_start.>user\n(.*?)<.im_end.>", prompt, re.DOTALL)[-1]
    if "page" in question:
        return PAGE.replace("BACKGROUND", "#f3efe6")
    return PAGE.replace("BACKGROUND", "#e3efe9") if "greener" in question else FUNCTION


def main(folder: Path) -> None:
    engine = ScriptedEngine(answer, token_seconds=0.002, prefill_seconds=0.4)
    server = LiveServer(Registry.of(engine, "scripted-model"), ServerSettings())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 760}, color_scheme="dark")
        page.goto(server.url)
        ask(page, "Write a Python function that parses an ISO 8601 duration such as P3DT4H.")
        answered(page)
        page.evaluate("() => { document.querySelector('#messages').scrollTop = 0 }")
        page.screenshot(path=folder / "web_chat.png")

        page = browser.new_page(viewport={"width": 1280, "height": 760}, color_scheme="light")
        page.goto(server.url)
        ask(page, "Build a page: a stopwatch with laps.")
        answered(page)
        ask(page, "A little greener, please.")
        answered(page, 2)
        frame = page.frame_locator("#panel-preview iframe")
        frame.get_by_text("Start").click()
        for _ in range(3):
            page.wait_for_timeout(900)
            frame.get_by_text("Lap", exact=True).click()
        frame.get_by_text("Stop").click()
        page.screenshot(path=folder / "web_artifact.png")
        browser.close()
    server.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
