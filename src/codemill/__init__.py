"""Codemill: the Qwen3-Coder system, whole, in one readable Python codebase."""

__version__ = "0.1.0"
