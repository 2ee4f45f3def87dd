"""What the tests of the page do again and again."""

import json
import re
from typing import Any


def ask(page: Any, text: str) -> None:
    """Write a message and send it."""
    page.get_by_role("textbox", name="Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def shown(page: Any, text: str) -> Any:
    """What has this text among the messages."""
    return page.locator("#messages").get_by_text(text)


def answered(page: Any, number: int = 1) -> Any:
    """The last of so many answers, once it is complete."""
    page.wait_for_function(
        "number => document.querySelectorAll('.answer').length === number && !document.querySelector('[data-running]')",
        arg=number,
    )
    return page.locator(".answer").last


def answer_with(page, chunks: list, end: str = "data: [DONE]\n\n") -> None:
    """What the server says next, word by word: for what a script cannot make it say."""
    lines = [f"data: {json.dumps(c if 'error' in c else {'choices': [{'index': 0, **c}]})}\n\n" for c in chunks]
    body = "".join(lines) + end
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body), times=1
    )


def contrast(page, selector: str) -> float:
    """WCAG 2's contrast ratio of an element's text and what lies behind it."""
    front = luminance(page, selector, "color")
    back = luminance(page, selector, "backgroundColor")
    return (max(front, back) + 0.05) / (min(front, back) + 0.05)


def luminance(page, selector: str, name: str) -> float:
    colour = page.evaluate(
        """([selector, name]) => {
          let node = document.querySelector(selector);
          if (name === "color") return getComputedStyle(node).color;
          while (getComputedStyle(node).backgroundColor === "rgba(0, 0, 0, 0)") node = node.parentElement;
          return getComputedStyle(node).backgroundColor;
        }""",
        [selector, name],
    )
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
