"""Chunks of modules: nothing lost, bounded, cut before definitions."""

import pytest
from tokenizers import Tokenizer

from codemill.data.chunks import Chunk, chunk_modules, encode_texts
from codemill.data.corpus import Module


@pytest.mark.parametrize("max_tokens", [40, 200, 1000])
def test_chunks_join_to_the_modules_and_are_bounded(
    tokenizer: Tokenizer, modules: list[Module], max_tokens: int
) -> None:
    chunks = chunk_modules(tokenizer, modules, max_tokens)
    assert "".join(chunk.text for chunk in chunks) == "".join(module.text for module in modules)
    assert sum(chunk.is_last for chunk in chunks) == len(modules)
    for chunk, ids in zip(chunks, encode_texts(tokenizer, [c.text for c in chunks]), strict=True):
        assert len(ids) <= max_tokens or chunk.text.count("\n") <= 1


def test_chunks_begin_at_definitions(tokenizer: Tokenizer) -> None:
    method = "    def m(self):\n        return self.value + self.other\n\n"
    text = "import os\n\n" + ("class C:\n" + method * 2 + "@cached\ndef f():\n    return os.x\n\n") * 20
    chunks = chunk_modules(tokenizer, [Module("m", "m.py", text)], 250)
    assert len(chunks) > 3
    assert all(chunk.text.startswith(("class C", "@cached")) for chunk in chunks[1:])
    large = chunk_modules(tokenizer, [Module("m", "m.py", "class C:\n" + method * 60)], 250)
    assert all(chunk.text.startswith("    def m") for chunk in large[1:])


def test_a_module_that_fits_is_one_chunk(tokenizer: Tokenizer) -> None:
    assert chunk_modules(tokenizer, [Module("m", "m.py", "x = 1")], 100) == [Chunk("x = 1", True)]
    assert chunk_modules(tokenizer, [Module("m", "m.py", "")], 100) == []
