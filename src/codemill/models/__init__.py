"""The networks: what they compute, and how their weights come in and go out."""

from codemill.models.cache import Cache
from codemill.models.context import ForwardContext
from codemill.models.decoder import CausalLM
from codemill.models.initialize import initialize
from codemill.models.loader import load_model
from codemill.models.save import save_pretrained

__all__ = ["Cache", "CausalLM", "ForwardContext", "initialize", "load_model", "save_pretrained"]
