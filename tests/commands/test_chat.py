"""`codemill chat`: what is sent, what is printed, and what an error or Ctrl-C leaves behind."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codemill import LLM
from codemill.commands.chat import _lines
from codemill.engine.outputs import StreamPiece
from codemill.errors import UsageError
from commands.conftest import CONTEXT, Run

TOO_LONG = "word " * CONTEXT


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, str]]]:
    """The messages of each request that the model is given to answer."""
    requests: list[list[dict[str, str]]] = []
    original = LLM.stream_chat

    def record(self: LLM, messages: list[dict[str, str]], *rest: Any) -> Iterator[StreamPiece]:
        requests.append([dict(message) for message in messages])
        return original(self, messages, *rest)

    monkeypatch.setattr(LLM, "stream_chat", record)
    return requests


@pytest.fixture
def chat(codemill: Run, model_directory: Path) -> Run:
    """`chat(text, *options)`: a dialogue whose messages are the lines of the text, answers of 8 tokens."""

    def run(text: str | bytes, *options: str) -> Any:
        stdin = text.encode() if isinstance(text, str) else text
        return codemill("chat", "--model", model_directory, "--max-tokens", "8", *options, stdin=stdin)

    return run


def answers(out: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in out.splitlines()]


def test_the_history_is_sent(chat: Run, sent: list[list[dict[str, str]]]) -> None:
    done = chat("Hello.\n\n  \nAnd now?\n", "--system", "Be brief.", "--json")
    assert (done.status, len(sent)) == (0, 2)
    first, second = answers(done.out)
    assert sent[1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": "And now?"},
    ]
    assert first["finish_reason"] == second["finish_reason"] == "length"


def test_plain_output_is_the_text_of_json(chat: Run) -> None:
    plain, as_json = chat("Hello.\nAnd now?"), chat("Hello.\nAnd now?", "--json")
    assert plain.out == "".join(answer["content"] + "\n" for answer in answers(as_json.out))
    assert plain.err.count("8 generated at") == 2
    assert ">" not in plain.err


def test_reset_forgets_all_but_the_system_message(chat: Run, sent: list[list[dict[str, str]]]) -> None:
    done = chat("Hello.\n/reset\nAnd now?\n", "--system", "Be brief.")
    assert done.status == 0
    assert [message["content"] for message in sent[1]] == ["Be brief.", "And now?"]


@pytest.mark.parametrize("word", ["/exit", "/quit", " /exit "])
def test_exit_ends_it(word: str, chat: Run, sent: list[list[dict[str, str]]]) -> None:
    assert chat(f"Hello.\n{word}\nNever read.\n").status == 0
    assert len(sent) == 1


def test_another_command_shows_the_help(chat: Run, sent: list[list[dict[str, str]]]) -> None:
    done = chat("/help\n")
    assert (done.status, done.out, sent) == (0, "", [])
    assert "/reset" in done.err


def test_no_message_at_all(chat: Run) -> None:
    done = chat("")
    assert (done.status, done.out, done.err) == (0, "", "")


def test_an_error_leaves_the_dialogue_usable(chat: Run, sent: list[list[dict[str, str]]]) -> None:
    done = chat(f"Hello.\n{TOO_LONG}\nAnd now?\n", "--json")
    assert done.status == 1
    assert len(answers(done.out)) == 2
    (error,) = (line for line in done.err.splitlines() if "error" in line)
    assert error.startswith("codemill: error: the prompt has ")
    assert [message["content"] for message in sent[2] if message["role"] == "user"] == ["Hello.", "And now?"]


def test_weights_that_are_nan(codemill: Run, nan_directory: Path) -> None:
    done = codemill("chat", "--model", nan_directory, "--json", stdin=b"Hello.\n")
    assert done.status == 1
    assert "NaN" in done.error


def test_a_message_that_is_no_text(chat: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done = chat(b"caf\xe9\n")
    assert done.status == 2
    assert "no UTF-8" in done.error
    c_locale = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8", errors="surrogateescape")
    monkeypatch.setattr("sys.stdin", c_locale)
    with pytest.raises(UsageError, match="no UTF-8"):
        list(_lines())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "7"], "top_p"),
        (["--max-model-len", "1"], "max_model_len"),
    ],
)
def test_a_wrong_command_is_one_line_and_status_2(arguments: list[str], named: str, chat: Run) -> None:
    done = chat("Hello.\n", *arguments)
    assert done.status == 2
    assert named in done.error


@pytest.mark.parametrize("as_json", [False, True])
def test_what_ctrl_c_cuts_short_is_the_answer(
    as_json: bool, chat: Run, sent: list[list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, steps = LLM.stream_chat, iter(range(100))

    def interrupted(self: LLM, *arguments: Any) -> Iterator[StreamPiece]:
        for piece in original(self, *arguments):
            if next(steps) == 3:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(LLM, "stream_chat", interrupted)
    done = chat("Hello.\nAnd now?\n", *["--json"] * as_json)
    assert (done.status, len(sent)) == (0, 2)
    assert "(stopped)" in done.err
    cut = sent[1][1]["content"]
    assert cut
    if as_json:
        assert answers(done.out)[0] == {"content": cut, "finish_reason": "interrupted"}
    else:
        assert done.out.startswith(cut + "\n")


def test_a_second_ctrl_c_does_not_end_the_program(
    chat: Run, sent: list[list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    presses = iter([KeyboardInterrupt])

    def interrupt(*_: object) -> None:
        for press in presses:
            raise press

    monkeypatch.setattr("codemill.commands.options.print_speed", interrupt)
    done = chat("Hello.\nAnd now?\n")
    assert (done.status, len(sent)) == (0, 2)
    assert [message["content"] for message in sent[1]] == ["And now?"]
