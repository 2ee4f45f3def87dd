"""`codemill eval`: commands that are wrong, and data and runs that are not there."""

from pathlib import Path

import pytest

from codemill.cli import VERBS
from commands.conftest import Run
from commands.eval_data import write_data


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file in HumanEval's format; what runs by default lands in the test's own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return write_data(tmp_path / "HumanEval.jsonl.gz")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "SUITE"),
        (["humanevil", "--gold"], "did you mean humaneval?"),
        (["humaneval", "extra", "--gold"], "one suite at a time"),
        (["humaneval", "--gold", "--buggy"], "one of them"),
        (["humaneval", "--gold", "--samples", "x"], "one of them"),
        (["humaneval", "--gold", "--model", "x"], "no model runs in this process"),
        (["humaneval", "--gold", "--threads", "2"], "no model runs in this process"),
        (["humaneval", "--gold", "-n", "3"], "none is asked here"),
        (["humaneval", "--gold", "--style", "chat"], "none is asked here"),
        (["humaneval", "--gold", "--data", "nowhere"], "no such file or folder"),
        (["humaneval", "--gold", "--limit", "0"], "--limit 0"),
        (["humaneval", "--gold", "--timeout", "0"], "--timeout 0"),
        (["humaneval", "--gold", "--workers", "0"], "--workers"),
        (["humaneval", "--gold", "-k", "5"], "-k 5"),
        (["humaneval", "--gold", "-k", "one"], "-k one"),
        (["humaneval", "--gold", "--overwrite"], "--overwrite needs --output"),
        (["humaneval", "--gold", "--variant", "nonsense"], "nonsense"),
        (["humaneval", "--gold", "--language", "cobol"], "cobol"),
        (["humaneval", "--languages"], "--languages is for multipl-e"),
        (["humaneval", "--endpoint", "http://127.0.0.1:1"], "--model NAME"),
        (["humaneval", "--endpoint", "nonsense", "--model", "m"], "give a URL"),
        (["humaneval", "--endpoint", "http://127.0.0.1:1", "--model", "m", "--dtype", "float16"], "in this process"),
        (["humaneval", "--samples", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (["humaneval", "--temperature", "-1"], "--temperature -1.0"),
        (["humaneval", "--top-p", "0"], "--top-p 0.0"),
        (["humaneval", "-n", "0"], "-n 0"),
        (["humaneval", "-n", "5", "--temperature", "0"], "all be the same"),
        (["humaneval", "-n", "5", "-k", "10"], "-k 10"),
        (["humaneval", "--max-tokens", "0"], "--max-tokens 0"),
        (["humaneval", "--style", "fim"], "no style 'fim'"),
        (["humaneval", "--style", "verse"], "verse"),
        (["humaneval", "--dtype", "float7"], "dtype float7"),
        (["humaneval", "--device", "abacus"], "device 'abacus'"),
        (["humaneval", "--max-model-len", "1000000"], "max_model_len = 1000000"),
        (["humaneval", "--threads", "0"], "--threads"),
        (["humaneval", "--model", "nowhere/at/all"], "no such directory"),
        (["list", "x"], "takes no run"),
        (["compare", "x"], "takes two run directories"),
        (["report"], "takes one run directory"),
    ],
)
def test_a_wrong_command_is_one_line_and_status_2(arguments: list[str], named: str, codemill: Run, data: Path) -> None:
    with_data = [*arguments, "--data", str(data)] if len(arguments) > 1 and "--data" not in arguments else arguments
    done = codemill("eval", *with_data)
    assert done.status == 2
    assert named in done.error
    assert list(data.parent.iterdir()) == [data]


def test_runs_that_are_not_there(codemill: Run, data: Path) -> None:
    for arguments in (("compare", "x", "y"), ("report", "x")):
        done = codemill("eval", *arguments)
        assert done.status == 1
        assert "x has no results.json" in done.error


def test_data_in_another_format(codemill: Run, data: Path) -> None:
    data.write_text('{"task_id": "HumanEval/0", "prompt": "x"}\n')
    done = codemill("eval", "humaneval", "--gold", "--data", data)
    assert done.status == 1
    assert f"{data}, line 1: " in done.error


def test_data_that_cannot_be_fetched(codemill: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(data.parent))
    done = codemill("eval", "humaneval", "--gold")
    assert done.status == 1
    assert "cannot fetch" in done.error
    assert "give the file with --data" in done.error


def test_it_is_a_verb() -> None:
    assert "eval" in VERBS
