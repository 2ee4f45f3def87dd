"""The types of GGUF tensors: how many elements form a block, and in how many bytes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorType:
    """A number format of ggml; `block_size` neighbours in a row are stored together in `block_bytes` bytes."""

    name: str
    number: int
    block_size: int
    block_bytes: int

    @property
    def is_float(self) -> bool:
        """Whether every element is a float of its own."""
        return self.block_size == 1

    def num_bytes(self, num_elements: int) -> int:
        """Bytes of so many elements, which must be whole blocks."""
        return num_elements // self.block_size * self.block_bytes


F32 = TensorType("F32", 0, 1, 4)
F16 = TensorType("F16", 1, 1, 2)
BF16 = TensorType("BF16", 30, 1, 2)
Q4_0 = TensorType("Q4_0", 2, 32, 18)
Q4_1 = TensorType("Q4_1", 3, 32, 20)
Q5_0 = TensorType("Q5_0", 6, 32, 22)
Q5_1 = TensorType("Q5_1", 7, 32, 24)
Q8_0 = TensorType("Q8_0", 8, 32, 34)
IQ4_NL = TensorType("IQ4_NL", 20, 32, 18)
Q2_K = TensorType("Q2_K", 10, 256, 84)
Q3_K = TensorType("Q3_K", 11, 256, 110)
Q4_K = TensorType("Q4_K", 12, 256, 144)
Q5_K = TensorType("Q5_K", 13, 256, 176)
Q6_K = TensorType("Q6_K", 14, 256, 210)
IQ4_XS = TensorType("IQ4_XS", 23, 256, 136)
_ALL = (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS)
SUPPORTED = {found.number: found for found in _ALL}

# What the types are called that we cannot read (ggml.h), for the message.
_OTHERS = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 24: "I8",
    25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


def type_name(number: int) -> str:
    """The name of a type, also of one that is not supported."""
    found = SUPPORTED.get(number)
    return found.name if found is not None else _OTHERS.get(number, f"number {number}")
