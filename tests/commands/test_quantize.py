"""`codemill quantize`, and `--quantization` of the verbs that load a model."""

import json
from pathlib import Path

import pytest

from codemill.config import QuantizationConfig
from codemill.models import load_model
from commands.conftest import Run


def test_the_copy_is_a_model_with_its_tokenizer(codemill: Run, model_directory: Path, tmp_path: Path) -> None:
    done = codemill("quantize", model_directory, tmp_path / "small")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"{tmp_path / 'small'}: int4, ")
    assert load_model(tmp_path / "small").config.quantization == QuantizationConfig(4)
    options = ("--max-tokens", "8", "--json")
    ours = codemill("generate", "def add(", "--model", tmp_path / "small", *options)
    loading = codemill("generate", "def add(", "--model", model_directory, "--quantization", "int4", *options)
    assert json.loads(ours.out)["outputs"] == json.loads(loading.out)["outputs"]


def test_options(codemill: Run, model_directory: Path, tmp_path: Path) -> None:
    options = ("--bits", "8", "--group-size", "64", "--asymmetric", "--head-bits", "4", "--json")
    done = json.loads(codemill("quantize", model_directory, tmp_path / "small", *options).out)
    assert done["quantization"] == "int8:g64:asym:head4"
    assert done["directory"] == str(tmp_path / "small")
    model = load_model(tmp_path / "small")
    assert done["bytes"] == sum(parameter.nbytes for parameter in model.parameters()) < done["source_bytes"]
    assert model.config.quantization == QuantizationConfig(8, 64, symmetric=False, head_bits=4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--bits", "5"), "5 bits are not supported: choose 4 or 8"),
        (("--head-bits", "16"), "16 bits are not supported"),
        (("--group-size", "48"), "group size 48: give a multiple of 32"),
    ],
)
def test_wrong_options(
    codemill: Run, model_directory: Path, tmp_path: Path, options: tuple[str, ...], expected: str
) -> None:
    done = codemill("quantize", model_directory, tmp_path / "small", *options)
    assert done.status == 2
    assert expected in done.error
    assert not list(tmp_path.iterdir())


def test_refusals(codemill: Run, model_directory: Path, tmp_path: Path) -> None:
    full = codemill("quantize", model_directory, model_directory)
    assert (full.status, "exists already" in full.error) == (2, True)
    nothing = codemill("quantize", tmp_path / "none", tmp_path / "small")
    assert (nothing.status, "no such directory" in nothing.error) == (2, True)
    unknown = codemill("generate", "x", "--model", model_directory, "--quantization", "int3")
    assert (unknown.status, "choose int4, int8" in unknown.error) == (2, True)


def test_calibrated_by_a_text(codemill: Run, model_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "text.py").write_text("def add(first, second):\n    return first + second\n" * 50)
    options = ("--calibrate", tmp_path / "text.py")
    assert codemill("quantize", model_directory, tmp_path / "calibrated", *options).status == 0
    assert codemill("quantize", model_directory, tmp_path / "again", *options).status == 0
    assert codemill("quantize", model_directory, tmp_path / "plain").status == 0
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("calibrated", "again", "plain")]
    assert files[0] == files[1] != files[2]
    missing = codemill("quantize", model_directory, tmp_path / "none", "--calibrate", tmp_path / "missing")
    assert missing.status == 2
    assert "no such file" in missing.error
