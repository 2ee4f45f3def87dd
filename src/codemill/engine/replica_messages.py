"""What a replica and the process that started it tell each other. No torch here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from codemill.config import ModelConfig
from codemill.engine.generation_config import GenerationConfig
from codemill.engine.prompts import Prompt
from codemill.engine.sampling_params import SamplingParams
from codemill.engine.serving import Submission
from codemill.engine.updates import Event
from codemill.errors import CodemillError

ControlAction = Literal["metrics", "load_weights", "sleep", "wake", "add_adapter", "remove_adapter"]


@dataclass(frozen=True)
class ReplicaOptions:
    """How a replica begins. num_replicas: those that share the memory. options: arguments of `LLM`."""

    model: str | Path | None
    num_threads: int
    num_replicas: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Submit:
    """Compute a request. `seeds` has one for each of its sequences."""

    prompt: Prompt
    params: SamplingParams
    seeds: list[str]
    submission: Submission


@dataclass(frozen=True)
class Abort:
    """Stop work on a request."""

    request_id: str


@dataclass(frozen=True)
class Control:
    """Do something between two steps, and send a Result of that number.

    directory: of the weights or the adapter to load. name: of the adapter.
    """

    number: int
    action: ControlAction
    directory: Path | None = None
    name: str | None = None


@dataclass(frozen=True)
class Close:
    """End: finish what there is within so many seconds, and abort the rest."""

    timeout: float


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    config: ModelConfig
    generation_config: GenerationConfig
    max_model_len: int
    max_num_seqs: int
    block_size: int


@dataclass(frozen=True)
class Failed:
    """The model cannot be loaded; the replica ends."""

    error: CodemillError


@dataclass(frozen=True)
class Events:
    """News of requests."""

    events: list[Event]


@dataclass(frozen=True)
class Result:
    """What came of a Control: a value, or an error."""

    number: int
    value: Any = None
    error: CodemillError | None = None


ToReplica = Submit | Abort | Control | Close
FromReplica = Ready | Failed | Events | Result
