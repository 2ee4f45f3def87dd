"""The networks: what they compute, and how their weights come in and go out."""

from codemill.models.cache import Cache
from codemill.models.context import ForwardContext
from codemill.models.decoder import CausalLM

__all__ = ["Cache", "CausalLM", "ForwardContext"]
