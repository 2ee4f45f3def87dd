import json
import shutil
from pathlib import Path

import pytest

from codemill.chat import Tokenizer

STYLES = {
    "Qwen3-Coder.ik-2026-08": "qwen3_coder",
    "Qwen3-Coder.llamacpp-2025-10": "qwen3_coder",
    "Qwen3.5-4B": "qwen3_coder",
    "Qwen3-0.6B": "hermes",
    "Qwen2.5-7B-Instruct": "hermes",
    "QwQ-32B": "hermes",
}


@pytest.mark.parametrize("name", list(STYLES))
def test_a_chat_template_says_how_calls_are_written(
    name: str, small_folder: Path, shared_data: Path, tmp_path: Path
) -> None:
    shutil.copy(small_folder / "tokenizer.json", tmp_path)
    shutil.copy(shared_data / "chat_templates" / f"{name}.jinja", tmp_path / "chat_template.jinja")
    assert Tokenizer.load(tmp_path).call_style == STYLES[name]


def test_every_template_at_hand_has_its_style(shared_data: Path) -> None:
    assert {path.stem for path in (shared_data / "chat_templates").glob("*.jinja")} == set(STYLES)


def test_without_a_template_it_is_ours(small: Tokenizer) -> None:
    assert small.call_style == "qwen3_coder"


def test_the_template_for_tools_decides(small_folder: Path, tmp_path: Path) -> None:
    shutil.copy(small_folder / "tokenizer.json", tmp_path)
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "<function={{ name }}>"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert Tokenizer.load(tmp_path).call_style == "qwen3_coder"
