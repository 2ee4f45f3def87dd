"""What a person does on the page, in a real Chromium before the real server."""

import json
import re

import pytest

from server.web.pages import answer_with, answered, ask, contrast, luminance, shown

pytestmark = pytest.mark.slow

ANSWER = """Here is **bold** and `code`:

```python
def add(a, b):
    return a + b  # sum
```

| a | b |
|---|--:|
| 1 | 2 |

1. one
2. two
"""


def counting(prompt: str) -> str:
    """Says which message it answers."""
    return "answer to " + re.findall(r"<.im_start.>user\n(.*?)<.im_end.>", prompt, re.DOTALL)[-1]


def test_an_answer_streams_as_markdown_with_highlighted_code(serve, open_page) -> None:
    page = open_page(serve(lambda prompt: ANSWER, token_seconds=0.02))
    ask(page, "Add numbers")
    shown(page, "Here is").wait_for()
    assert page.locator(".answer[data-running]").count() == 1
    answer = answered(page)
    assert answer.locator("strong").inner_text() == "bold"
    assert answer.locator("pre").inner_text() == "def add(a, b):\n    return a + b  # sum"
    assert answer.locator(".t-keyword").all_inner_texts() == ["def", "return"]
    assert answer.locator(".t-comment").inner_text() == "# sum"
    assert answer.locator("td.end").inner_text() == "2"
    assert answer.locator("ol > li").all_inner_texts() == ["one", "two"]
    assert re.search(r"\d+ tokens · [\d.]+ tokens/s · first after [\d.]+ m?s · prompt \d+", answer.inner_text())
    assert page.errors == []


def test_a_streamed_answer_is_the_same_as_one_opened_from_the_history(serve, open_page) -> None:
    page = open_page(serve(lambda prompt: ANSWER, token_seconds=0.005))
    ask(page, "Add numbers")
    streamed = answered(page).locator(".prose").inner_html()
    page.reload()
    assert answered(page).locator(".prose").inner_html() == streamed


def test_stop_ends_the_answer_and_frees_the_server(serve, open_page) -> None:
    client = serve(lambda prompt: "word " * 5000, token_seconds=0.01, max_num_seqs=1)
    page = open_page(client)
    ask(page, "Go on")
    shown(page, "word word").wait_for()
    page.get_by_role("button", name="Stop").click()
    answer = answered(page)
    assert "Stopped." in answer.inner_text()
    assert "word word" in answer.inner_text()
    # the only place is free again
    ask(page, "And again")
    page.wait_for_function("() => document.querySelectorAll('.answer .prose')[1]?.textContent.includes('word word')")
    page.keyboard.press("Escape")
    assert "Stopped." in answered(page, 2).inner_text()


def test_an_answer_made_again_stands_beside_the_first(serve, open_page) -> None:
    number = iter(range(1, 10))
    page = open_page(serve(lambda prompt: f"answer {next(number)}"))
    ask(page, "Hello")
    answered(page)
    page.get_by_role("button", name="Answer again").click()
    shown(page, "answer 2").wait_for()
    assert answered(page).locator(".variants").inner_text() == "2 / 2"
    page.get_by_role("button", name="Earlier variant").click()
    shown(page, "answer 1").wait_for()
    page.reload()
    shown(page, "answer 1").wait_for()


def test_a_message_can_be_edited_and_the_old_one_stays(serve, open_page) -> None:
    page = open_page(serve(counting))
    ask(page, "first")
    shown(page, "answer to first").wait_for()
    ask(page, "second")
    shown(page, "answer to second").wait_for()
    page.get_by_role("button", name="Edit this message").first.click()
    field = page.get_by_role("textbox", name="Edit the message")
    assert field.input_value() == "first"
    field.fill("changed")
    field.press("Enter")
    shown(page, "answer to changed").wait_for()
    assert page.locator(".answer").count() == 1
    page.get_by_role("button", name="Earlier variant").click()
    shown(page, "answer to second").wait_for()


def test_the_models_of_the_server_can_be_chosen(serve, open_page) -> None:
    asked = []
    page = open_page(serve())
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [{"id": "scripted"}, {"id": "other"}]}))
    page.on("request", lambda request: request.post_data and asked.append(json.loads(request.post_data)["model"]))
    page.reload()
    picker = page.get_by_role("combobox", name="Model")
    picker.select_option("other")
    ask(page, "Hello")
    answered(page)
    picker.select_option("scripted")
    ask(page, "Hello")
    answered(page, 2)
    assert asked == ["other", "scripted"]
    page.reload()
    page.wait_for_function("() => document.querySelector('#model').value === 'scripted'")


def test_parameters_reach_the_server(serve, open_page) -> None:
    prompts, bodies = [], []
    page = open_page(serve(lambda prompt: prompts.append(prompt) or "done"))
    page.on("request", lambda request: request.post_data and bodies.append(json.loads(request.post_data)))
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Speak like a pirate.")
    page.get_by_label("Temperature").fill("0.25")
    page.get_by_label("Max tokens").fill("7")
    page.get_by_label("Top p").fill("5")
    page.get_by_role("button", name="Save").click()
    assert page.get_by_role("dialog").is_visible()  # a probability of 5 is none
    page.get_by_label("Top p").fill("0.5")
    page.get_by_role("button", name="Save").click()
    ask(page, "Hello")
    answered(page)
    assert "Speak like a pirate." in prompts[0]
    assert {name: bodies[0][name] for name in ("temperature", "top_p", "max_tokens")} == {
        "temperature": 0.25,
        "top_p": 0.5,
        "max_tokens": 7,
    }
    assert "top_k" not in bodies[0]


def test_history_survives_a_reload(serve, open_page) -> None:
    page = open_page(serve(counting))
    for text in ("alpha", "beta"):
        page.get_by_role("button", name="New chat").click()
        ask(page, text)
        shown(page, f"answer to {text}").wait_for()
    page.reload()
    shown(page, "answer to beta").wait_for()  # the chat that was open
    chats = page.locator("#history .chat")
    assert chats.all_inner_texts() == ["beta", "alpha"]
    chats.last.click()
    shown(page, "answer to alpha").wait_for()

    page.get_by_role("button", name="More about alpha").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.get_by_label("Name of the chat").fill("gamma")
    page.keyboard.press("Enter")
    page.get_by_role("searchbox", name="Find a chat").fill("gam")
    assert chats.all_inner_texts() == ["gamma"]
    page.get_by_role("searchbox", name="Find a chat").fill("")

    page.get_by_role("button", name="More about beta").click()
    page.get_by_role("menuitem", name="Delete").click()
    assert chats.all_inner_texts() == ["gamma"]
    page.get_by_role("button", name="Undo").click()
    assert sorted(chats.all_inner_texts()) == ["beta", "gamma"]
    page.get_by_role("button", name="More about beta").click()
    page.get_by_role("menuitem", name="Delete").click()
    page.reload()
    page.wait_for_function("() => document.querySelectorAll('#history .chat').length === 1")
    assert chats.all_inner_texts() == ["gamma"]


def test_chats_are_exported_and_imported(serve, open_page, tmp_path) -> None:
    client = serve(counting)
    page = open_page(client)
    ask(page, "alpha")
    answered(page)
    page.get_by_role("button", name="More about alpha").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="Export as Markdown").click()
    assert "## User\n\nalpha\n\n## Assistant (scripted)\n\nanswer to alpha" in download.value.path().read_text()
    page.get_by_role("button", name="Export or import chats").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="Export all chats").click()
    file = tmp_path / "chats.json"
    download.value.save_as(file)

    other = open_page(client)
    other.get_by_role("button", name="Export or import chats").click()
    with other.expect_file_chooser() as chooser:
        other.get_by_role("menuitem", name="Import chats").click()
    chooser.value.set_files(file)
    other.get_by_role("button", name="alpha", exact=True).click()
    shown(other, "answer to alpha").wait_for()

    chats = json.loads(file.read_text())
    message = next(iter(chats["chats"][0]["messages"].values()))
    message["parent"] = message["id"]
    file.write_text(json.dumps(chats))
    other.get_by_role("button", name="Export or import chats").click()
    with other.expect_file_chooser() as chooser:
        other.get_by_role("menuitem", name="Import chats").click()
    chooser.value.set_files(file)
    other.get_by_text("a chat in it is damaged").wait_for()


def test_text_files_become_part_of_the_message(serve, open_page, tmp_path) -> None:
    prompts = []
    (tmp_path / "notes.md").write_text("a\n```\nfenced\n```\n")
    (tmp_path / "picture.bin").write_bytes(b"\x89\0\0")
    page = open_page(serve(lambda prompt: prompts.append(prompt) or "read"))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add text files").click()
    chooser.value.set_files([tmp_path / "notes.md", tmp_path / "picture.bin"])
    page.get_by_text("picture.bin is no text.").wait_for()
    page.keyboard.type("What is this?")
    page.keyboard.press("Enter")
    answered(page)
    assert "notes.md:\n````md\na\n```\nfenced\n```\n````\n\nWhat is this?" in prompts[0]


def test_a_growing_answer_is_followed_until_one_scrolls_away(serve, open_page) -> None:
    page = open_page(serve(lambda prompt: "line\n\n" * 200, token_seconds=0.01))
    ask(page, "Go on")
    page.wait_for_function("() => document.querySelector('#messages').scrollTop > 200")
    page.locator("#messages").hover()
    page.mouse.wheel(0, -2000)
    page.get_by_role("button", name="To the end").wait_for()
    page.wait_for_timeout(300)
    assert page.locator("#messages").evaluate("node => node.scrollTop") < 200
    page.get_by_role("button", name="To the end").click()
    page.get_by_role("button", name="To the end").wait_for(state="hidden")
    page.keyboard.press("Escape")


def test_the_keyboard_is_enough(serve, open_page) -> None:
    page = open_page(serve(counting, token_seconds=0.02))
    field = page.get_by_role("textbox", name="Message", exact=True)
    page.wait_for_function("() => document.activeElement.id === 'input'")
    page.keyboard.type("first")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    page.keyboard.press("Enter")
    shown(page, "answer to first").wait_for()
    answered(page)
    page.keyboard.press("ArrowUp")  # edits the last message
    page.keyboard.press("Escape")
    page.keyboard.press("Shift+Escape")
    assert field.evaluate("node => node === document.activeElement")
    page.keyboard.press("Control+/")
    assert page.get_by_role("dialog", name="Keyboard shortcuts").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+.")
    assert page.get_by_label("System prompt").evaluate("node => node === document.activeElement")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+Shift+O")
    assert page.locator(".answer").count() == 0
    page.keyboard.type("other")
    page.keyboard.press("Enter")
    shown(page, "answer to other").wait_for()
    answered(page)
    page.keyboard.press("Control+Shift+S")
    page.get_by_role("button", name="New chat").wait_for(state="hidden")
    page.keyboard.press("Control+Shift+S")
    page.get_by_role("button", name="New chat").press("Tab")  # from the button to the search, to the chats
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    reached = page.evaluate("document.activeElement.closest('#history, #menu') !== null")
    assert reached


def test_every_control_has_a_name(serve, open_page) -> None:
    page = open_page(serve(lambda prompt: ANSWER))
    ask(page, "Hello")
    answered(page)
    page.get_by_role("button", name="Settings").click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, iframe, [role=tab]")].filter((node) =>
          !(node.textContent.trim() || node.getAttribute("aria-label") || node.title || node.labels?.length)
        ).map((node) => node.outerHTML)"""
    )
    assert nameless == []


def test_a_screen_reader_hears_blocks_not_tokens(serve, open_page) -> None:
    page = open_page(serve(lambda prompt: "First paragraph here.\n\nSecond one.", token_seconds=0.01))
    ask(page, "Hello")
    answered(page)
    said = page.locator("#announcer p").all_inner_texts()
    assert said == ["The model is answering", "First paragraph here.", "Second one.", "The answer is complete"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes(serve, open_page, scheme: str) -> None:
    page = open_page(serve(lambda prompt: ANSWER), color_scheme=scheme)
    ask(page, "Hello")
    answered(page)
    background = luminance(page, "body", "backgroundColor")
    assert (background < 0.1) if scheme == "dark" else (background > 0.8)
    for selector in (".prose p", ".meta", "#hint", ".t-keyword", ".t-comment", ".prose code", ".code-bar .language"):
        assert contrast(page, selector) >= 4.5, selector


def test_the_theme_switch_wins_over_the_system_and_is_kept(serve, open_page) -> None:
    page = open_page(serve(), color_scheme="light")
    switch = page.get_by_role("button", name="Theme")
    switch.click()
    switch.click()
    assert luminance(page, "body", "backgroundColor") < 0.1
    page.reload()
    assert luminance(page, "body", "backgroundColor") < 0.1


def test_it_fits_a_phone(serve, open_page) -> None:
    wide = "```\n" + "x" * 300 + "\n```\n\n" + "y" * 300 + "\n\n| a | b |\n|---|---|\n| " + "z" * 200 + " | 1 |"
    page = open_page(serve(lambda prompt: wide), viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    ask(page, "Hello")  # there, Enter begins a new line
    assert page.locator(".answer").count() == 0
    page.get_by_role("button", name="Send").tap()
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("document.querySelector('#messages').scrollWidth") <= 390
    assert not page.get_by_role("button", name="New chat").is_visible()
    page.get_by_role("button", name="Show the list of chats").tap()
    page.locator("#history .chat").tap()
    page.wait_for_function("() => getComputedStyle(document.querySelector('#sidebar')).visibility === 'hidden'")
    small = page.evaluate(
        """() => [...document.querySelectorAll("button")].map((node) => node.getBoundingClientRect())
          .filter(({width, height}) => width && (width < 24 || height < 24)).length"""  # WCAG 2.2, target size
    )
    assert small == 0


def test_the_progress_of_a_prompt_is_shown(serve, open_page) -> None:
    page = open_page(serve(lambda prompt: "read", prefill_seconds=6, max_model_len=8192))
    ask(page, "word " * 3000)
    page.get_by_text(re.compile(r"Reading the prompt: [1-9][\d,]* of [\d,]+ tokens")).wait_for()
    value = page.locator("progress").evaluate("node => node.value / node.max")
    assert 0 < value < 1
    assert answered(page).locator(".prose").inner_text() == "read"
    assert page.locator("progress").count() == 0


def test_the_place_in_the_queue_is_shown(serve, open_page) -> None:
    client = serve(lambda prompt: "word " * 80, max_num_seqs=1, token_seconds=0.05)
    pages = [open_page(client) for _ in range(3)]
    for page in pages:
        ask(page, "Hello")
        page.locator(".answer").wait_for()
        page.wait_for_timeout(300)
    assert "next in the queue" in pages[1].locator(".status").inner_text()
    assert "1 request ahead" in pages[2].locator(".status").inner_text()


def test_thinking_is_folded(serve, open_page) -> None:
    page = open_page(serve())
    chunks = [
        {"delta": {"role": "assistant"}},
        {"delta": {"reasoning_content": "Let me *see*."}},
        {"delta": {"content": "42"}},
        {"delta": {}, "finish_reason": "stop"},
    ]
    answer_with(page, chunks)
    ask(page, "Hello")
    answer = answered(page)
    assert answer.locator(".prose").last.inner_text() == "42"
    assert not answer.get_by_text("Let me see").is_visible()
    answer.get_by_text("Thought").click()
    assert answer.locator(".reasoning em").inner_text() == "see"


def test_an_error_is_shown_with_what_the_server_says_and_can_be_retried(serve, open_page) -> None:
    page = open_page(serve(lambda prompt: "better"))
    busy = {"error": {"message": "The server is busy: 8 requests wait."}}
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=429, headers={"Retry-After": "30"}, json=busy),
        times=1,
    )
    ask(page, "Hello")
    alert = answered(page).get_by_role("alert")
    assert "8 requests wait. The server asks to wait 30 seconds." in alert.inner_text()
    page.get_by_role("button", name="Retry").click()
    shown(page, "better").wait_for()
    assert page.locator(".answer").count() == 1
    assert page.locator(".variants").count() == 0


def test_an_error_in_mid_stream_keeps_what_came_before(serve, open_page) -> None:
    page = open_page(serve())
    answer_with(page, [{"delta": {"content": "half an"}}, {"error": {"message": "out of memory"}}])
    ask(page, "Hello")
    answer = answered(page)
    assert "half an" in answer.inner_text()
    assert "out of memory" in answer.get_by_role("alert").inner_text()


def test_a_stream_that_breaks_off_is_not_taken_for_an_answer(serve, open_page) -> None:
    page = open_page(serve())
    answer_with(page, [{"delta": {"content": "half an"}}], end="")
    ask(page, "Hello")
    assert "ended before the answer was complete" in answered(page).get_by_role("alert").inner_text()


def test_a_prompt_that_is_too_long_says_so(serve, open_page) -> None:
    page = open_page(serve(max_model_len=64))
    ask(page, "word " * 500)
    assert "maximum context length" in answered(page).get_by_role("alert").inner_text()


def test_an_answer_at_its_limit_says_so(serve, open_page) -> None:
    page = open_page(serve(lambda prompt: "word " * 100))
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Max tokens").fill("5")
    page.get_by_role("button", name="Save").click()
    ask(page, "Hello")
    assert "reached the limit of tokens" in answered(page).inner_text()


def test_a_server_that_is_gone_is_named_and_found_again(serve, open_page) -> None:
    page = open_page(serve(lambda prompt: "back"))
    page.route("**/v1/**", lambda route: route.abort())
    ask(page, "Hello")
    assert "does not answer" in answered(page).get_by_role("alert").inner_text()
    page.unroute("**/v1/**")
    page.get_by_role("button", name="Retry").click()
    shown(page, "back").wait_for()


def test_the_api_key_is_asked_for_and_stays_in_the_tab(serve, open_page) -> None:
    from codemill.server.settings import ServerSettings

    page = open_page(serve(lambda prompt: "welcome", settings=ServerSettings(api_keys=("s3cret",))))
    page.get_by_role("button", name="Enter the API key").click()
    page.get_by_label("API key", exact=True).fill("s3cret")
    page.get_by_role("button", name="Save").click()
    page.wait_for_function("() => document.querySelector('#notice').hidden")
    ask(page, "Hello")
    shown(page, "welcome").wait_for()
    assert "s3cret" not in page.evaluate("JSON.stringify(localStorage)")
    assert all("s3cret" not in url for url in page.requests)
    page.reload()
    ask(page, "Hello again")
    answered(page, 2)
