"""What each model spec means."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from codemill import spec
from codemill.errors import CodemillError, UsageError
from codemill.spec import ModelSource, resolve


def test_random() -> None:
    source = resolve("random:qwen3-0.6b")
    assert (source.kind, source.name, source.directory) == ("random", "random:qwen3-0.6b", None)
    assert source.preset is not None
    assert source.preset.config.hidden_size == 1024
    with pytest.raises(CodemillError, match=r"random:qwen3-0\.6b has no files"):
        source.fetch(["config.json"])


def test_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tmp_path) == ModelSource("directory", str(tmp_path), directory=tmp_path)
    assert resolve(str(tmp_path)).fetch(["config.json"]) == tmp_path
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name").kind == "directory"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/org").directory == tmp_path / "org"


def test_hub_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = resolve("Qwen/Qwen3-0.6B")
    assert source == ModelSource("hub", "Qwen/Qwen3-0.6B")
    asked = []
    monkeypatch.setattr(spec, "fetch", lambda *arguments: asked.append(arguments) or tmp_path)
    assert source.fetch(("config.json",)) == tmp_path
    assert asked == [("Qwen/Qwen3-0.6B", ("config.json",))]


def test_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "EMBEDDED", tmp_path)
    with pytest.raises(CodemillError, match="the embedded model is not installed"):
        resolve()
    (tmp_path / "config.json").write_text("{}")
    assert resolve(None) == ModelSource("embedded", "embedded", directory=tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the model spec is empty: give a model directory, a Hugging Face id"),
        ("nowhere", "nowhere: no such directory"),
        ("a/b/c", "a/b/c: no such directory"),
        ("./b", r"\./b: no such directory"),
        ("/no/such", "/no/such: no such directory"),
        ("org/model.gguf", r"org/model\.gguf: no such file"),
        ("qwen3-0.6b", r"say Qwen/Qwen3-0\.6B, for random ones random:qwen3-0\.6b"),
        (5, "the model spec is of type int: give a model directory"),
        (b"org/name", "the model spec is of type bytes"),
        ("random:", "unknown preset"),
        ("random:qwen3-0.5b", r"did you mean .*qwen3-0\.6b"),
    ],
)
def test_meaningless(text: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        resolve(text)
    assert "\n" not in str(caught.value)


def test_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="is a file; give"):
        resolve(str(tmp_path / "model.safetensors"))
    (tmp_path / "model.GGUF").write_bytes(b"")
    source = resolve(str(tmp_path / "model.GGUF"))
    assert (source.kind, source.file) == ("gguf", tmp_path / "model.GGUF")
    with pytest.raises(CodemillError, match="the file is empty"):
        source.load_config()


def test_resolving_imports_neither_torch_nor_the_hub_library() -> None:
    code = "import sys, codemill.spec; sys.exit(any(name in sys.modules for name in ('torch', 'huggingface_hub')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
