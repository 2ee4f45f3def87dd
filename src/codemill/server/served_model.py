"""What a request gets of the registry, and what a client is told of the models there are. No torch here."""

from dataclasses import dataclass
from typing import Literal

from codemill.chat.tokenizer import Tokenizer
from codemill.engine.serving import ServingEngine

CallStyle = Literal["qwen3_coder", "hermes"]


@dataclass(frozen=True)
class ModelCard:
    """A name that requests may ask for.

    created: Unix time at which the server began to serve it. parent: of an adapter, the model it belongs to.
    alias_of: the name that answers carry, where this is another one. max_model_len: the context in tokens, None as long
    as the model is not loaded. spec: the model spec, or an adapter's directory.
    """

    name: str
    created: int
    is_loaded: bool
    parent: str | None = None
    max_model_len: int | None = None
    spec: str = ""
    alias_of: str | None = None


@dataclass(frozen=True)
class ServedModel:
    """A loaded model, or an adapter of one, under the name that answers carry.

    call_style: how it writes tool calls: Qwen3-Coder's XML, or JSON between `<tool_call>` tags as Hermes.
    """

    name: str
    engine: ServingEngine
    adapter: str | None
    created: int
    call_style: CallStyle

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer

    @property
    def max_model_len(self) -> int:
        """The context in tokens, prompt and answer together."""
        return self.engine.max_model_len
