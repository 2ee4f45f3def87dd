"""The engines that can be measured, ours and its peers, all behind `BenchEngine`.

Each runs in a worker process, perhaps of another Python, so what is here imports the standard library and its own
engine only, that inside functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

OURS = "codemill"


@dataclass(frozen=True)
class EngineInfo:
    """An engine: the module and class behind its name, the package that must be installed, and how."""

    module: str
    package: str
    install: str


ENGINES: Mapping[str, EngineInfo] = {
    OURS: EngineInfo("codemill.bench.engines.ours", "codemill", "pip install codemill"),
    "llama.cpp": EngineInfo(
        "codemill.bench.engines.llama_cpp", "llama_cpp", "CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python"
    ),
    "openvino": EngineInfo(
        "codemill.bench.engines.openvino", "openvino_genai", "pip install openvino-genai optimum-intel nncf"
    ),
    "transformers": EngineInfo("codemill.bench.engines.transformers", "transformers", "pip install transformers"),
}
PEERS = tuple(name for name in ENGINES if name != OURS)


@dataclass(frozen=True)
class EngineOptions:
    """What a worker measures.

    model: a model spec, which ours loads. config: its `config.json`, of which peers make a model of random weights in
    `folder`. quantization: None, "int8" or "int4". max_tokens: the longest sequence; max_batch: the most of them.
    """

    model: str | None
    config: Mapping[str, Any]
    quantization: str | None
    dtype: str
    num_threads: int
    max_tokens: int
    max_batch: int
    folder: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def path(self, suffix: str) -> Path:
        """Where a peer's model of this shape and precision lies, or is to be written."""
        return Path(self.folder) / f"{shape_name(self.config)}-{self.quantization or self.dtype}{suffix}"


@dataclass(frozen=True)
class Timing:
    """Seconds until every sequence had its first token, and those of all later steps together."""

    first_seconds: float
    decode_seconds: float


class BenchEngine(Protocol):
    """An engine with its model loaded."""

    settings: Sequence[str]  # ways to run it; the best counts
    weights: Mapping[str, Any]  # how ours are held, see `OurEngine`; nothing of a peer

    def run(self, prompts: Sequence[Sequence[int]], num_new: int, setting: str) -> Timing:
        """Give each prompt `num_new` tokens. The prompts are all of one length and differ from one another."""
        ...


def create(name: str, options: EngineOptions) -> BenchEngine:
    """The engine `name` with its model. Raises ImportError if it is not installed."""
    engine: BenchEngine = import_module(ENGINES[name].module).create(options)
    return engine


def shape_name(config: Mapping[str, Any]) -> str:
    """A name that tells shapes apart: the family, and a checksum of everything that sizes the network."""
    from hashlib import sha256

    text = repr(sorted((key, repr(value)) for key, value in config.items()))
    return f"{config['model_type']}-{config['hidden_size']}-{sha256(text.encode()).hexdigest()[:8]}"
