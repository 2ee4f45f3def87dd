"""`codemill complete`: where the cursor stands, what of the file and the repository is sent, and how it refuses."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from codemill import LLM, SamplingParams
from codemill.chat.prompts import fim_ids
from commands.conftest import CONTEXT, Run

SOURCE = "def add(a, b):\n    return \n\n\nprint(add(1, 2))\n"


@pytest.fixture(scope="module")
def llm(model_directory: Path) -> LLM:
    return LLM(model_directory)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sums.py"
    path.write_text(SOURCE)
    return path


def complete(codemill: Run, model_directory: Path, place: object, *options: object) -> dict[str, Any]:
    done = codemill("complete", str(place), "--model", model_directory, "--max-tokens", "12", "--json", *options)
    assert done.status == 0, done.err
    return json.loads(done.out)


def expected(llm: LLM, prefix: str, suffix: str) -> str:
    params = SamplingParams(temperature=0.0, max_tokens=12, stop_token_ids=llm.tokenizer.fim_stop_ids)
    return llm.generate([fim_ids(llm.tokenizer, prefix, suffix)], params)[0].outputs[0].text


@pytest.mark.parametrize(
    ("place", "offset"),
    [
        ("", len(SOURCE)),
        (":2", SOURCE.index("\n\n\n")),
        (":2:5", SOURCE.index("return")),
        (":1:1", 0),
        (":3", SOURCE.index("\n\n\n") + 1),
        (":6", len(SOURCE)),
    ],
)
def test_the_cursor(place: str, offset: int, codemill: Run, llm: LLM, model_directory: Path, file: Path) -> None:
    result = complete(codemill, model_directory, f"{file}{place}")
    assert result == {
        "path": str(file),
        "completion": expected(llm, SOURCE[:offset], SOURCE[offset:]),
        "finish_reason": "length",
        "context": [],
        "dropped_tokens": 0,
    }


def test_the_stream_is_the_text_of_json(codemill: Run, model_directory: Path, file: Path) -> None:
    done = codemill("complete", f"{file}:2", "--model", model_directory, "--max-tokens", "12")
    assert done.status == 0
    assert done.out == complete(codemill, model_directory, f"{file}:2")["completion"] + "\n"
    assert "12 generated at" in done.err
    assert done.err.count("\n") == 1


def test_carriage_returns_are_kept(codemill: Run, llm: LLM, model_directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "dos.py"
    path.write_bytes(SOURCE.replace("\n", "\r\n").encode())
    prefix, _, suffix = SOURCE.partition("\n\n\n")
    prefix, suffix = prefix.replace("\n", "\r\n"), ("\n\n\n" + suffix).replace("\n", "\r\n")
    assert complete(codemill, model_directory, f"{path}:2")["completion"] == expected(llm, prefix, suffix)


def test_a_file_whose_name_looks_like_a_place(codemill: Run, llm: LLM, model_directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "log:12"
    path.write_text("started\n")
    assert complete(codemill, model_directory, path)["completion"] == expected(llm, "started\n", "")


def test_the_default_length_leaves_room_for_a_prompt(codemill: Run, model_directory: Path, file: Path) -> None:
    done = codemill("complete", f"{file}:2", "--model", model_directory, "--max-model-len", "80")
    assert "20 generated at" in done.err


@pytest.mark.parametrize(
    ("name", "content", "place", "named"),
    [
        ("a.py", b"x = 1\n", ":3", "has 2 lines, there is no line 3"),
        ("a.py", b"x = 1\n", ":0", "no line 0"),
        ("a.py", b"x = 1\n", ":1:7", "columns 1 to 6, there is no column 7"),
        ("a.py", b"x = 1\n", ":1:0", "no column 0"),
        ("a.py", b"x = 1\n", ":", "does not exist"),
        ("a.py", b"x = 1\n", ":one", "does not exist"),
        ("a.py", b"x = 1\n", ":" + "9" * 5000, "File name too long"),
        ("a.bin", b"\x7fELF\0\0\1", ":1", "is a binary file"),
        ("a.txt", b"caf\xe9\n", ":1", "is no UTF-8 text"),
        ("a.py", b"", "", "is empty"),
        ("a.py", b"", ":1", "is empty"),
    ],
)
def test_a_place_that_is_none(
    name: str, content: bytes, place: str, named: str, codemill: Run, model_directory: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    done = codemill("complete", f"{tmp_path / name}{place}", "--model", model_directory)
    assert done.status in (1, 2)
    assert named in done.error


@pytest.mark.parametrize(
    ("place", "named"), [("gone.py", "does not exist"), ("gone.py:1", "No such file"), ("", "is a")]
)
def test_what_is_no_file(place: str, named: str, codemill: Run, model_directory: Path, tmp_path: Path) -> None:
    done = codemill("complete", tmp_path / place, "--model", model_directory)
    assert done.status == 2
    assert named.lower() in done.error.lower()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--max-tokens", "0"], "max_tokens = 0"),
        (["--max-tokens", "-5"], "max_tokens = -5"),
        (["--max-tokens", str(CONTEXT)], "leaves no room"),
        (["--temperature", "-1"], "temperature"),
        (["--max-model-len", "1"], "max_model_len = 1"),
        (["--max-model-len", "8"], "add --window"),
        (["--max-model-len", "8", "--window"], "too short for a window"),
        (["--repo", "gone"], "--repo gone is no directory"),
    ],
)
def test_options_that_cannot_be(
    options: list[str], named: str, codemill: Run, model_directory: Path, file: Path
) -> None:
    done = codemill("complete", f"{file}:2", "--model", model_directory, *options)
    assert done.status == 2
    assert named in done.error


def test_weights_that_are_nan(codemill: Run, nan_directory: Path, file: Path) -> None:
    for extra in ([], ["--json"]):
        done = codemill("complete", f"{file}:2", "--model", nan_directory, *extra)
        assert done.status == 1
        assert "NaN" in done.error


@pytest.fixture
def long_file(tmp_path: Path) -> Path:
    path = tmp_path / "long.py"
    path.write_text("".join(f"value_{number} = {number}\n" for number in range(1000)))
    return path


def test_a_file_longer_than_the_context_is_refused(codemill: Run, model_directory: Path, long_file: Path) -> None:
    done = codemill("complete", f"{long_file}:500", "--model", model_directory)
    assert done.status == 2
    assert "add --window" in done.error
    assert str(CONTEXT - 128) in done.error


def test_with_window_it_is_cut_and_says_so(codemill: Run, model_directory: Path, long_file: Path) -> None:
    done = codemill("complete", f"{long_file}:500", "--model", model_directory, "--window", "--json")
    assert done.status == 0
    dropped = json.loads(done.out)["dropped_tokens"]
    assert dropped > 0
    assert done.err == f"[{dropped} tokens far from the cursor left out]\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A Git checkout; `ignored.py` is none of its files."""
    root = tmp_path / "shop"
    files = {
        "app/main.py": "from app.prices import total\n\n\ndef run():\n    ",
        "app/prices.py": "def total(prices):\n    return sum(prices)\n",
        "app/shapes.py": "SIDES = 4\n",
        "tests/test_main.py": "def test_run():\n    pass\n",
        "ignored.py": "SECRET = 1\n",
        "notes.md": "# Notes\n",
        ".gitignore": "ignored.py\n",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    return root


def test_the_repository_is_context(codemill: Run, llm: LLM, model_directory: Path, repository: Path) -> None:
    place = repository / "app" / "main.py"
    result = complete(codemill, model_directory, place, "--repo", repository)
    assert result["context"] == ["app/shapes.py", "tests/test_main.py", "app/prices.py"]
    files = [(name, (repository / name).read_text()) for name in result["context"]]
    ids = fim_ids(llm.tokenizer, place.read_text(), "", "shop", files, "app/main.py")
    params = SamplingParams(temperature=0.0, max_tokens=12, stop_token_ids=llm.tokenizer.fim_stop_ids)
    assert result["completion"] == llm.generate([ids], params)[0].outputs[0].text


def test_a_small_context_takes_the_most_related(codemill: Run, model_directory: Path, repository: Path) -> None:
    place = str(repository / "app" / "main.py")
    options = ("complete", place, "--model", model_directory, "--repo", repository, "--max-tokens", "4")
    done = codemill(*options, "--max-model-len", "125", "--json")
    assert json.loads(done.out)["context"] == ["app/prices.py"]
    assert done.err == "[context: app/prices.py]\n"
    done = codemill(*options, "--max-model-len", "70")
    assert done.status == 0
    assert done.err.startswith("[context: no related file fits]\n")


def test_a_file_outside_the_repository(codemill: Run, model_directory: Path, repository: Path, file: Path) -> None:
    done = codemill("complete", f"{file}:2", "--model", model_directory, "--repo", repository)
    assert done.status == 2
    assert f"{file} does not lie in the repository" in done.error
