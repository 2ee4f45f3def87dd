"""Matrix products in the C++ library: see `cpu/product.h`. Shapes: M rows, N outputs, K inputs."""

import ctypes
from math import prod

import torch
from torch import Tensor

from codemill.kernels.cpu_library import load_cpu_library
from codemill.kernels.cpu_structs import MatrixStruct
from codemill.kernels.packed_matrix import PackedMatrix

_LANES = 256  # of the widest variant, AMX with its tiles; the tests try the others


def has_product_kernel(x: Tensor, weight: Tensor | PackedMatrix) -> bool:
    """Whether the library can multiply x [..., K] by such a weight [N, K]; it knows no gradients."""
    return (
        x.device.type == "cpu" and not x.requires_grad and MatrixStruct.takes(weight) and load_cpu_library() is not None
    )


def cpu_product(x: Tensor, weight: Tensor | PackedMatrix) -> Tensor:
    """x [..., K] @ weight^T -> fp32 [..., N], computed in fp32, or with packed weights as `product_reference` does.

    A row gets the same bits in any company. See `has_product_kernel`.
    """
    library = load_cpu_library()
    assert library is not None
    rows = x.to(torch.float32).contiguous()
    struct = MatrixStruct.of(weight)
    out = torch.empty(*x.shape[:-1], struct.num_rows)
    num_rows = prod(x.shape[:-1])
    threads = torch.get_num_threads()
    library.linear(ctypes.byref(struct), rows.data_ptr(), out.data_ptr(), num_rows, threads, _LANES)
    return out
