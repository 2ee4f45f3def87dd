"""The cursor in a file, and the prompt made of what surrounds it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codemill.chat import Tokenizer
from codemill.chat.completion import Cursor, completion_prompt, read_text
from codemill.chat.prompts import fim_ids
from codemill.errors import UsageError


def cursor(path: Path, content: str, *place: int) -> tuple[str, str]:
    path.write_bytes(content.encode())
    found = Cursor.at(path, *place)
    assert (found.path, found.prefix + found.suffix) == (path, content)
    return found.prefix, found.suffix


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.py"


@pytest.mark.parametrize(
    ("content", "place", "prefix"),
    [
        ("a\nbb\nc", (), "a\nbb\nc"),
        ("a\nbb\nc", (1,), "a"),
        ("a\nbb\nc", (2,), "a\nbb"),
        ("a\nbb\nc", (2, 1), "a\n"),
        ("a\nbb\nc", (2, 3), "a\nbb"),
        ("a\nbb\nc", (3,), "a\nbb\nc"),
        ("a\nbb\n", (3,), "a\nbb\n"),
        ("a\r\nbb\r\nc", (2,), "a\r\nbb"),
        ("a\r\nbb\r\n", (3,), "a\r\nbb\r\n"),
        ("a\rbb\rc", (2, 2), "a\rb"),
        ("\n\nc", (2,), "\n"),
        ("# 世界🙂\nc", (1, 5), "# 世界"),
        ("a\fb\x1cc\u2028d\x85e\nsecond\n", (2,), "a\fb\x1cc\u2028d\x85e\nsecond"),
    ],
)
def test_the_place_of_the_cursor(content: str, place: tuple[int, ...], prefix: str, path: Path) -> None:
    assert cursor(path, content, *place)[0] == prefix


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        ("a\nb", (3,), "has 2 lines, there is no line 3"),
        ("a\nb\n", (4,), "has 3 lines, there is no line 4"),
        ("a\nb", (0,), "no line 0"),
        ("", (2,), "has 1 lines, there is no line 2"),
        ("a\nbb\n", (2, 4), "columns 1 to 3, there is no column 4"),
        ("a\r\nb", (1, 3), "columns 1 to 2, there is no column 3"),
        ("a", (1, 0), "no column 0"),
    ],
)
def test_a_place_outside_the_file(content: str, place: tuple[int, ...], message: str, path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        cursor(path, content, *place)


@settings(max_examples=100)
@given(st.text(alphabet=st.sampled_from("ab \n\r\f\u2028é"), max_size=30), st.data())
def test_every_place_an_editor_has(tmp_path_factory: pytest.TempPathFactory, content: str, data: st.DataObject) -> None:
    lines = content.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    line = data.draw(st.integers(1, len(lines)))
    column = data.draw(st.integers(1, len(lines[line - 1]) + 1))
    prefix, _ = cursor(tmp_path_factory.getbasetemp() / "any.py", content, line, column)
    seen = prefix.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert (len(seen), seen[-1]) == (line, lines[line - 1][: column - 1])


@pytest.mark.parametrize(
    ("content", "message"), [(b"a\0b", "is a binary file"), (b"\xff\xfea", "is no UTF-8"), (None, "cannot be read")]
)
def test_what_is_no_text(content: bytes | None, message: str, path: Path) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_text(path)


def at(prefix: str, suffix: str = "") -> Cursor:
    return Cursor(Path("file.py"), prefix, suffix)


def test_a_file_that_fits_is_whole(small: Tokenizer) -> None:
    whole = fim_ids(small, "def f(", "):\n")
    prompt = completion_prompt(small, at("def f(", "):\n"), len(whole))
    assert (prompt.token_ids, prompt.context_paths, prompt.dropped_tokens) == (whole, (), 0)


def test_one_token_too_many_is_refused(small: Tokenizer) -> None:
    whole = fim_ids(small, "def f(", "):\n")
    with pytest.raises(UsageError, match=rf"file.py takes {len(whole)} tokens of the {len(whole) - 1} .* add --window"):
        completion_prompt(small, at("def f(", "):\n"), len(whole) - 1)


def test_an_empty_file_is_refused(small: Tokenizer) -> None:
    with pytest.raises(UsageError, match="is empty"):
        completion_prompt(small, at(""), 100)


def window(tokenizer: Tokenizer, prefix: str, suffix: str, budget: int) -> tuple[str, str]:
    """What a windowed prompt holds of the file."""
    prompt = completion_prompt(tokenizer, at(prefix, suffix), budget, window=True)
    assert len(prompt.token_ids) <= budget
    text = tokenizer.decode(prompt.token_ids)
    before, _, after = text.removeprefix("<|fim_prefix|>").removesuffix("<|fim_middle|>").partition("<|fim_suffix|>")
    full = len(fim_ids(tokenizer, prefix, suffix))
    assert prompt.dropped_tokens == full - len(prompt.token_ids)
    return before, after


def test_a_window_is_mostly_what_precedes(small: Tokenizer) -> None:
    prefix = "".join(f"a{i} = {i}\n" for i in range(200))
    suffix = "".join(f"z{i} = {i}\n" for i in range(200))
    before, after = window(small, prefix, suffix, 200)
    assert prefix.endswith(before)
    assert suffix.startswith(after)
    assert 2 * len(after) < len(before) < 5 * len(after)


@pytest.mark.parametrize("long_side", ["prefix", "suffix"])
def test_what_one_side_does_not_need_the_other_gets(long_side: str, small: Tokenizer) -> None:
    text = "".join(f"a{i} = {i}\n" for i in range(300))
    prefix, suffix = (text, "end\n") if long_side == "prefix" else ("start\n", text)
    before, after = window(small, prefix, suffix, 150)
    assert (after if long_side == "prefix" else before) == (suffix if long_side == "prefix" else prefix)
    assert len(small.encode(before + after)) > 120


def test_a_window_without_room_is_refused(small: Tokenizer) -> None:
    with pytest.raises(UsageError, match="too short for a window"):
        completion_prompt(small, at("x" * 100), 11, window=True)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80), st.text(max_size=80), st.integers(12, 60))
def test_a_window_never_exceeds_the_budget(small: Tokenizer, prefix: str, suffix: str, budget: int) -> None:
    if prefix or suffix:
        prompt = completion_prompt(small, at(prefix, suffix), budget, window=True)
        assert len(prompt.token_ids) <= budget
        assert prompt.dropped_tokens >= 0


def test_a_window_breaks_no_character(small: Tokenizer) -> None:
    text = "🙂世é" * 40
    for budget in range(30, 60):
        before, after = window(small, text, text, budget)
        assert text.endswith(before)
        assert text.startswith(after)


def test_control_tokens_in_a_file_stay_text(small: Tokenizer) -> None:
    prompt = completion_prompt(small, at("x = '<|fim_suffix|>'", "<|im_end|>"), 200)
    assert prompt.token_ids.count(small.control_tokens["<|fim_suffix|>"]) == 1
    assert small.control_tokens["<|im_end|>"] not in prompt.token_ids


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    files = {
        "main.py": "import prices\n\ntotal = prices.",
        "prices.py": "def total():\n    return 1\n",
        "main_menu.py": "MENU = 'a long list of things to eat'\n" * 10,
        "zebra.py": "STRIPES = 80\n",
        "empty.py": " \n",
    }
    root.mkdir()
    for name, content in files.items():
        (root / name).write_text(content)
    return root


def with_repository(tokenizer: Tokenizer, repository: Path, budget: int) -> tuple[tuple[str, ...], list[int]]:
    prompt = completion_prompt(tokenizer, Cursor.at(repository / "main.py"), budget, repository)
    assert len(prompt.token_ids) <= budget
    return prompt.context_paths, prompt.token_ids


def test_the_most_related_file_is_nearest_to_the_cursor(small: Tokenizer, repository: Path) -> None:
    paths, ids = with_repository(small, repository, 2000)
    assert paths == ("zebra.py", "main_menu.py", "prices.py")
    files = [(name, (repository / name).read_text()) for name in paths]
    assert ids == fim_ids(small, (repository / "main.py").read_text(), "", "shop", files, "main.py")


def test_a_file_that_does_not_fit_leaves_its_room_to_others(small: Tokenizer, repository: Path) -> None:
    assert with_repository(small, repository, 160)[0] == ("zebra.py", "prices.py")


def test_context_fits_every_budget(small: Tokenizer, repository: Path) -> None:
    alone = fim_ids(small, (repository / "main.py").read_text(), "")
    assert with_repository(small, repository, len(alone)) == ((), alone)
    counts = [len(with_repository(small, repository, budget)[0]) for budget in range(len(alone), 700, 7)]
    assert counts[-1] == 3


def test_a_windowed_file_leaves_no_room_for_others(small: Tokenizer, repository: Path) -> None:
    prompt = completion_prompt(small, at("x = 1\n" * 100), 60, repository, window=True)
    assert prompt.context_paths == ()
    assert prompt.dropped_tokens > 0
