"""The web page in a real Chromium, before a real server whose model is a script."""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OpenPage = Callable[..., Any]


def find_chromium() -> str | None:
    """The browser that CODEMILL_CHROMIUM names, or one on the path."""
    named = os.environ.get("CODEMILL_CHROMIUM")
    return named or next((path for path in map(shutil.which, NAMES) if path), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-web")
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium here: make test-web installs it, or name one with CODEMILL_CHROMIUM")
    # Chromium's own sandbox refuses to run as root; the iframe's sandbox, which is tested here, is another thing.
    arguments = ["--use-fake-device-for-media-stream", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """`open_page(client, **options of the browser's context)` -> the page of that server, ready for use.

    `page.errors` collects what the browser's console says is wrong, and exceptions of scripts. `page.requests` has the
    address of everything that the browser asked for.
    """
    contexts = []

    def start(client: Any, **options: Any) -> Any:
        context = browser.new_context(**options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.errors, page.requests = [], []
        page.on("console", lambda message: message.type == "error" and page.errors.append(message.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        context.on("request", lambda request: page.requests.append(request.url))
        page.goto(f"{client.base_url}/")
        page.wait_for_selector("#model option", state="attached")
        return page

    yield start
    for context in contexts:
        context.close()
