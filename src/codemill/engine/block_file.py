"""One entry of the prefix cache on disk: tensors in safetensors' format, with a checksum of all that they mean."""

import json
import zlib
from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

_CHECKSUM = "checksum"


def encode_entry(key: bytes, tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of the file for `key`. The tensors may be on any device, but must not share memory."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(on_cpu, {_CHECKSUM: _checksum(key, on_cpu)})


def decode_entry(key: bytes, data: bytes) -> dict[str, Tensor]:
    """The tensors in the file of `key`, bit for bit, on the CPU. Raises ValueError saying what is wrong with it."""
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that PyTorch does not have
        raise ValueError("truncated, or not in safetensors' format") from error
    if _stored_checksum(data) != _checksum(key, tensors):
        raise ValueError("the checksum does not agree")
    return tensors


def _checksum(key: bytes, tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of the key, and of the name, dtype, shape and bytes of every tensor.

    It is against accidents, of which it misses one in four billion; a file changed on purpose passes every checksum
    that lies beside the data.
    """
    checksum = zlib.crc32(key)
    for name, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"


def _stored_checksum(data: bytes) -> str | None:
    """From the header, a JSON object behind its length in 8 bytes; safetensors does not give metadata of bytes."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return header.get("__metadata__", {}).get(_CHECKSUM)
