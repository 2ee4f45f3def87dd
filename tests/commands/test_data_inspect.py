"""`codemill data inspect`: what is learned, in colour and in marks, and what is wrong with the data."""

import json
from pathlib import Path
from typing import Any

import pytest

from codemill.commands import data_inspect
from codemill.data.inspection import Stretch
from commands.conftest import Run

RECORDS = [
    {"messages": [{"role": "user", "content": "Add 1 and 2."}, {"role": "assistant", "content": "3"}]},
    {"prompt": "q", "chosen": " good", "rejected": " bad"},
    {"messages": [{"role": "user", "content": "alone"}]},
    {"messages": [{"role": "tool", "content": "3"}]},
]


@pytest.fixture
def training(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in RECORDS) + "broken\n")
    return path


def test_learned_text_stands_between_marks(codemill: Run, training: Path) -> None:
    done = codemill("data", "inspect", training)
    assert done.status == 0, done.err
    assert f"--- {training}:1: " in done.out
    assert "<|im_start|>user\nAdd 1 and 2.<|im_end|>\n<|im_start|>assistant\n⟦3<|im_end|>⟧\n" in done.out
    assert "q⟦ good<|endoftext|>⟧" in done.out
    assert "q⟦ bad<|endoftext|>⟧" in done.out
    assert "4 records, 3 documents" in done.out
    assert "nothing to learn from: 1" in done.out
    assert "malformed: 2" in done.out
    assert f"  {training}:3: nothing to learn from: no message of the assistant has a loss weight" in done.out
    assert f"  {training}:4: message 0: a tool result without a call before it" in done.out
    assert f"  {training}:5: not JSON" in done.out


def test_the_object_for_programs(codemill: Run, training: Path) -> None:
    done = codemill("data", "inspect", training, "--context", 10, "--limit", 1, "--json")
    value = json.loads(done.out)
    assert (value["records"], value["documents"], value["nothing_to_learn"], value["malformed"]) == (4, 3, 1, 2)
    (shown,) = value["shown"]
    assert [stretch["weight"] for stretch in shown["stretches"]] == [0, 1, 0]
    assert shown["stretches"][1]["text"] == "3<|im_end|>"
    assert value["overlong"] == 1
    assert value["lengths"]["p100"] == sum(stretch["tokens"] for stretch in shown["stretches"])
    assert 0 < value["learned_share"] < 1


def test_one_line_alone(codemill: Run, training: Path) -> None:
    done = codemill("data", "inspect", training, "--line", 2)
    assert "Add 1" not in done.out
    assert f"--- {training}:2, chosen: " in done.out
    assert "malformed" not in done.out
    assert "not JSON" in codemill("data", "inspect", training, "--line", 5).out
    assert "--line 9: there is no record" in codemill("data", "inspect", training, "--line", 9).error


def test_control_tokens_that_are_read_as_text_are_counted(codemill: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "<|im_start|>user\na", "completion": "b"}))
    assert "control tokens are read as text (--control-tokens): 1" in codemill("data", "inspect", path).out
    assert "read as text" not in codemill("data", "inspect", path, "--control-tokens", "tokens").out


def test_thoughts_that_the_template_leaves_out_are_counted(codemill: Run, tmp_path: Path) -> None:
    answers = [
        {"role": "assistant", "content": "4", "reasoning_content": "Two and two."},
        {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\n4"},  # this template writes it as it is
        {"role": "assistant", "content": "4"},
    ]
    records = [{"messages": [{"role": "user", "content": "2+2?"}, answer]} for answer in answers]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    done = codemill("data", "inspect", path)
    assert "messages whose thoughts the chat template leaves out: 1\n" in done.out


def test_source_code_with_holes(codemill: Run, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "a.py").write_text("def a():\n    return 1\n")
    done = codemill("data", "inspect", tmp_path / "project", "--level", "repository", "--fim", 1)
    assert done.status == 0, done.err
    assert "<⟦|repo_name|>" not in done.out
    assert "project\n<|file_sep|>a.py\n<|fim_prefix|>" in done.out
    assert "give --level" in codemill("data", "inspect", tmp_path / "project", "--fim", 1).error


def test_colours_of_weights_and_characters_that_drive_a_terminal() -> None:
    assert data_inspect._stretch(Stretch("a\x1b[2J", 3, 0.0), True) == "\x1b[2ma\\x1b[2J\x1b[0m"
    assert data_inspect._stretch(Stretch("a", 1, 1.0), True) == "\x1b[32ma\x1b[0m"
    assert data_inspect._stretch(Stretch("a", 1, 0.5), True) == "\x1b[33ma\x1b[0m"
    assert data_inspect._stretch(Stretch("a", 1, 0.5), False) == "⟦0.5:a⟧"


def test_packed_rows_are_shown_document_by_document(codemill: Run, tmp_path: Path) -> None:
    training, packed = tmp_path / "train.jsonl", tmp_path / "packed"
    records = [RECORDS[0], {"prompt": "q", "completion": " good"}]
    training.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    assert codemill("data", "pack", training, "--context", 64, "--output", packed).status == 0
    done = codemill("data", "inspect", packed)
    assert f"--- {packed}: row 1, document 2: " in done.out
    assert "q⟦ good<|endoftext|>⟧" in done.out
    found, whole = (json.loads(codemill("data", "inspect", path, "--json").out) for path in (packed, training))
    assert found["shown"][0]["where"] == f"{packed}: row 1, document 1"
    assert stretches(found) == stretches(whole)
    assert (found["documents"], found["learned_tokens"]) == (2, whole["learned_tokens"])
    assert "there are 1 rows" in codemill("data", "inspect", packed, "--line", 9).error
    (packed / "rows.npy").write_bytes((packed / "rows.npy").read_bytes()[:-4])
    assert f"{packed / 'rows.npy'} is not a whole file of packed rows" in codemill("data", "inspect", packed).error


def stretches(found: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return sorted((shown["stretches"] for shown in found["shown"]), key=str)


def test_no_color_is_respected(
    training: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from codemill.commands import data_inspect
    from codemill.data.inspection import Inspection, ShownDocument, Stretch

    found = Inspection(8, shown=[ShownDocument("a:1", (Stretch("q", 1, 0.0), Stretch("a", 1, 1.0)))])
    monkeypatch.setattr(data_inspect.sys.stdout, "isatty", lambda: True, raising=False)
    for value, is_coloured in (("1", False), ("", True)):
        monkeypatch.setenv("NO_COLOR", value)
        data_inspect._print(found)
        assert ("\x1b[" in capsys.readouterr().out) is is_coloured


def test_prompts_for_distillation_are_shown(codemill: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    records = [{"prompt": [{"role": "user", "content": "Add."}], "domain": "web"}, {"prompt": "q", "response": "a"}]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    done = codemill("data", "inspect", path)
    assert "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n" in done.out
    assert "prompts without an answer, for distillation on policy: 1" in done.out
    assert f"{path}:2: keys 'prompt', 'response': a record is" in done.out
