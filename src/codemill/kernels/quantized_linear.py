"""Products with packed matrices, and the layers that hold them. Shapes as in `packed_matrix.py`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from codemill.kernels.cpu_product import cpu_product, has_product_kernel
from codemill.kernels.linear import linear
from codemill.kernels.low_rank import AdaptedRows
from codemill.kernels.packed_matrix import PackedMatrix

SCALE, MINIMUM = "_scale", "_minimum"  # what follows the name of a packed weight in the names of its companions


def quantized_linear(x: Tensor, matrix: PackedMatrix, row_block: int = 0) -> Tensor:
    """x [..., K] @ matrix^T -> [..., N], in the dtype of x.

    On the CPU by the C++ library. Elsewhere in PyTorch: the weights are dequantised to that dtype, some rows at a time,
    at each call. That is slow; it makes a quantised model small, not fast. row_block: as for `linear`; the library
    needs none.

    The matrix is frozen. The gradient of x is that of a product with the dequantised weights, as if the library did not
    round activations (the straight-through estimator of Bengio et al. 2013, arXiv:1308.3432).
    """
    if x.requires_grad and torch.is_grad_enabled():
        out: Tensor = _FrozenProduct.apply(x, matrix, row_block)
        return out
    return _product(x, matrix, row_block)


def _product(x: Tensor, matrix: PackedMatrix, row_block: int) -> Tensor:
    if has_product_kernel(x, matrix):
        return cpu_product(x, matrix).to(x.dtype)
    return torch.cat([linear(x, rows.to(x.dtype), row_block=row_block) for rows in matrix.row_slices()], dim=-1)


class _FrozenProduct(torch.autograd.Function):
    """Keeps the packed matrix for the backward pass, and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: PackedMatrix, row_block: int) -> Tensor:
        ctx.matrix = matrix
        return _product(x.detach(), matrix, row_block)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """gradient [..., N] @ matrix -> that of x, [..., K]; the sum over slices of rows in fp32."""
        flat, first = gradient.flatten(0, -2), 0
        total = flat.new_zeros(flat.shape[0], ctx.matrix.num_columns, dtype=torch.float32)
        for rows in ctx.matrix.row_slices():
            total += flat[:, first : first + rows.shape[0]] @ rows.to(flat.dtype)
            first += rows.shape[0]
        return total.to(gradient.dtype).view(*gradient.shape[:-1], -1), None, None


def product(x: Tensor, weight: Tensor | PackedMatrix, row_block: int = 0) -> Tensor:
    """x [..., in] @ weight^T -> [..., out], whichever way the weight is stored."""
    if isinstance(weight, PackedMatrix):
        return quantized_linear(x, weight, row_block)
    if x.dtype != weight.dtype:  # of the C++ library's decoder, which computes in fp32
        return cpu_product(x, weight)
    return linear(x, weight, row_block=row_block)


def set_packed(module: nn.Module, name: str, matrix: PackedMatrix) -> None:
    """Make a packed matrix a parameter of `module`; its scales and minima become parameters beside it."""
    for key, tensor in packed_tensors(name, matrix).items():
        setattr(module, key, nn.Parameter(tensor, requires_grad=False))
    if matrix.minimum is None:
        module.register_parameter(name + MINIMUM, None)


def get_packed(module: nn.Module, name: str, num_rows: int, num_columns: int) -> PackedMatrix:
    """The matrix that `set_packed` put there."""
    parameters = module._parameters
    weight, scale = parameters[name], parameters[name + SCALE]
    assert weight is not None
    assert scale is not None
    return PackedMatrix(weight, scale, parameters[name + MINIMUM], num_rows, num_columns)


def packed_tensors(name: str, matrix: PackedMatrix) -> dict[str, Tensor]:
    """The tensors of a packed matrix by their names, in memory as on disk, where the weight is called `name`."""
    tensors = {name: matrix.weight, name + SCALE: matrix.scale}
    return tensors if matrix.minimum is None else {**tensors, name + MINIMUM: matrix.minimum}


def converter(module: nn.Module, fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What `nn.Module._apply` is to do instead of `fn`: scales and minima of the module move, but stay in fp16."""
    kept = {id(each) for name, each in module._parameters.items() if name.endswith((SCALE, MINIMUM))}

    def convert(tensor: Tensor) -> Tensor:
        converted = fn(tensor)
        is_kept = id(tensor) in kept and converted.dtype != tensor.dtype
        return tensor.to(converted.device) if is_kept else converted

    return convert


class QuantizedLinear(nn.Module):
    """`Linear` with a packed weight: parameters weight uint8 [B, G, ...], weight_scale and weight_minimum."""

    name = ""
    row_block = 0
    bias: nn.Parameter | None

    def __init__(self, matrix: PackedMatrix, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.num_rows, matrix.num_columns
        set_packed(self, "weight", matrix)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    @property
    def matrix(self) -> PackedMatrix:
        return get_packed(self, "weight", self.out_features, self.in_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        return super()._apply(converter(self, fn), recurse)

    def forward(self, x: Tensor, adapters: Sequence[AdaptedRows] = ()) -> Tensor:
        """x [..., in] -> [..., out]; rows that have an adapter get its update."""
        out = quantized_linear(x, self.matrix, self.row_block)
        if self.bias is not None:
            out = out + self.bias
        for adapter in adapters:
            adapter.add_linear(self.name, x, out, self.bias)
        return out


class QuantizedEmbedding(nn.Module):
    """An embedding whose table is packed; as the table may also be the head, it is packed by rows like any other."""

    def __init__(self, matrix: PackedMatrix, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = matrix.num_rows, matrix.num_columns
        self.dtype = dtype
        set_packed(self, "weight", matrix)

    @property
    def matrix(self) -> PackedMatrix:
        return get_packed(self, "weight", self.num_embeddings, self.embedding_dim)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedEmbedding":
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(converter(self, fn), recurse)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids [...] -> embeddings [..., D]."""
        return self.matrix.rows(input_ids, self.dtype)
