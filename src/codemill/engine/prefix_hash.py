"""Names of KV-cache blocks by content: the same tokens after the same beginning have the same name. No torch here."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

DIGEST_BYTES = 16


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The name of a block that holds `token_ids` and follows the block named `parent`.

    What else shapes the values (the model, an adapter) goes into the name that the first block follows.
    """
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=DIGEST_BYTES).digest()


def extend_hashes(hashes: list[bytes], token_ids: Sequence[int], block_size: int, root: bytes = b"") -> None:
    """Append to `hashes`, in place, the names of the full blocks of `token_ids` that it lacks."""
    for start in range(len(hashes) * block_size, len(token_ids) - block_size + 1, block_size):
        hashes.append(block_hash(hashes[-1] if hashes else root, token_ids[start : start + block_size]))
