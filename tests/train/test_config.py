"""The TOML file of a training run: what it may say, and one line for what it may not."""

import json
from pathlib import Path

import pytest

from codemill import cli
from codemill.errors import UsageError
from codemill.train.config import PretrainConfig
from codemill.train.config_file import load_config
from codemill.train.dpo_config import DpoConfig
from codemill.train.sft_config import SftConfig

ROOT = Path(__file__).resolve().parents[2]
TEXT = """
output = "out"
[model]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 8
intermediate_size = 24
max_position_embeddings = 64
[data]
context = 64
[loop]
steps = 10
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(TEXT)
    return path


def test_what_is_said_and_what_is_left_out(path: Path) -> None:
    config = load_config(PretrainConfig, path)
    assert (config.output, config.model.head_dim, config.loop.steps, config.loop.rows_per_step) == ("out", 8, 10, 8)
    assert config.optimizer.weight_decay == 0.05


KINDS: dict[str, type] = {"tuned_dpo": DpoConfig, "tuned": SftConfig}


def test_the_configurations_that_ship_are_valid() -> None:
    paths = sorted((ROOT / "runs").glob("*.toml"))
    assert paths
    for path in paths:
        kind = next((kind for start, kind in KINDS.items() if path.stem.startswith(start)), PretrainConfig)
        load_config(kind, path)


def test_overrides(path: Path) -> None:
    settings = ("loop.steps=3", "optimizer.lr=1", "output=else/where", "optimizer.decay=0.5", " data.tasks = 7")
    config = load_config(PretrainConfig, path, settings)
    assert (config.loop.steps, config.output, config.data.tasks) == (3, "else/where", 7)
    assert (config.optimizer.lr, type(config.optimizer.lr), config.optimizer.decay) == (1.0, float, 0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loop.stepz=3", r"unknown key loop.stepz: did you mean steps\?"),
        ("loop.xyz=3", "unknown key loop.xyz; known are steps, "),
        ("optimiser.lr=3", r"unknown key optimiser: did you mean optimizer\?"),
        ("=3", "write section.key=value"),
        ("loop.=3", "write section.key=value"),
        (".steps=3", "write section.key=value"),
        ("loop.steps=3\nother=4", r"loop.steps = '3\\nother=4' is no int"),
        ("loop.steps=99999999999999999999", "loop.steps = 99999999999999999999 must be below 1e"),
        ("loop.seed=9223372036854775808", "loop.seed = 9223372036854775808 must be below"),
        ("optimizer.eps=0", "optimizer.eps = 0 must be above 0"),
        ("optimizer.betas=[0.9, nan]", "optimizer.betas = nan must be a number that is not negative"),
        ("loops.steps=3", "unknown key loops"),
        ("loop.steps=many", "loop.steps = 'many' is no int"),
        ("loop.steps=1.5", "loop.steps = 1.5 is no int"),
        ("loop.steps=true", "loop.steps = True is no int"),
        ("output=3", "output = 3 is no str"),
        ("output=", "output is empty: name a folder for the run"),
        ("model.tie_word_embeddings=1", "model.tie_word_embeddings = 1 is no bool"),
        ("loop=3", "loop must be a section"),
        ("output.x=3", "output is no section"),
        ("loop.steps", "write section.key=value"),
        ("optimizer.lr=-0.1", "optimizer.lr = -0.1 must be a number that is not negative"),
        ("optimizer.lr=-1", "optimizer.lr = -1.0 must be a number that is not negative"),
        ("optimizer.lr=nan", "optimizer.lr = nan must be a number that is not negative"),
        ("optimizer.lr=inf", "optimizer.lr = inf must be a number that is not negative"),
        ("loop.seed=-1", "loop.seed = -1 must be a number that is not negative"),
        ("loop.steps=0", "give either loop.steps or loop.epochs, above 0"),
        ("loop.epochs=2", "give either loop.steps or loop.epochs, above 0"),
        ("loop.rows_per_micro_batch=0", "loop.rows_per_micro_batch = 0 must be at least 1"),
        ("loop.log_every=0", "loop.log_every = 0 must be at least 1"),
        ("loop.precision=half", "loop.precision = 'half' must be float32 or bfloat16"),
        ("loop.rows_per_micro_batch=3", "must be a multiple of loop.rows_per_micro_batch"),
        ("data.context=65", "data.context must not be larger than model.max_position_embeddings"),
        ("model.head_dim=0", r"\[model\]: head_dim = 0"),
        ("model.num_key_value_heads=3", r"\[model\]: "),
    ],
)
def test_what_it_may_not_say(override: str, message: str, path: Path) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        load_config(PretrainConfig, path, [override])
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith((str(path), "--set "))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[loop]\nsteps = 10\n", "", "the key loop is missing"),
        ("steps = 10", "", "give either loop.steps or loop.epochs"),
        ("[loop]", "[loop", "run.toml"),
        ("steps = 10", "steps = 10\nsteps = 11", "run.toml"),
        ('"out"', "out", "run.toml"),
    ],
)
def test_files_that_are_wrong(old: str, new: str, message: str, path: Path) -> None:
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(UsageError, match=message):
        load_config(PretrainConfig, path)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\0")
    for name, message in (("gone.toml", "does not exist"), ("binary.toml", "binary.toml"), ("", "directory")):
        with pytest.raises(UsageError, match=message):
            load_config(PretrainConfig, tmp_path / name)


def test_a_dry_run_says_what_would_be_done(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "pretrain", str(path), "--dry-run"]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "10 steps of 8 x 64 tokens, 5,120 tokens in all"
    assert second == "67,520 of 67,520 parameters are trained (100 %)"
    assert third.startswith("about 0.4")
    assert cli.main(["train", "pretrain", str(path), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] > 0
    assert cli.main(["train", "pretrain", str(path), "--dry-run", "--set", "loop.steps=-1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"codemill: error: {path}: loop.steps = -1 must be a number that is not negative\n"
