"""GGUF, the file format of llama.cpp: the container, and what its metadata say. No torch here; see `models/gguf_*`."""
