"""The product of rows with a packed matrix, as every kernel computes it; this is the reference that they are held to.

Activations are quantised as they come: each row and group of columns to 8 bits by its own largest magnitude. The dot
product of a group is then a sum of integers, exact in any order, and groups are added in ascending order by fused
multiply-adds in fp32. So a result has the same bits for any number of rows and threads, and on every processor.

Shapes: M rows of activations, N outputs, K inputs, G groups, g group size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.kernels.packed_matrix import PackedMatrix

# Below this magnitude a group counts as zero: 127 / magnitude would overflow.
SMALLEST_MAGNITUDE = 1e-30


def product_reference(x: Tensor, matrix: PackedMatrix) -> Tensor:
    """x fp32 [M, K] @ matrix^T -> fp32 [M, N], bit for bit what the kernels compute; NaN and infinity give NaN."""
    quantised, x_scale = quantize_activations(x, matrix.group_size)  # [M, G, g], [M, G]
    weight = matrix.quantised_rows() - (2 ** (matrix.bits - 1) if matrix.symmetric else 0)  # [N, G, g]
    scale, minimum = matrix.scale_rows(matrix.scale).float(), None
    if matrix.minimum is not None:
        minimum = matrix.scale_rows(matrix.minimum).float()
    out = x.new_zeros(x.shape[0], matrix.num_rows)
    for group in range(quantised.shape[1]):
        values = quantised[:, group].double()
        dots = (values @ weight[:, group].double().T).float()  # integers below 2^24
        out = fused_multiply_add(dots, scale[:, group] * x_scale[:, group, None], out)
        if minimum is not None:
            sums = values.sum(dim=1, keepdim=True).float()
            out = fused_multiply_add(minimum[:, group] * x_scale[:, group, None], sums, out)
    return out


def quantize_activations(x: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """x fp32 [M, K] -> whole numbers from -127 to 127, int32 [M, G, g], and scales fp32 [M, G]: x = scale * number.

    scale = magnitude / 127, number = x * (127 / magnitude), rounded once, to the nearest, ties to even; magnitude is
    the largest of the group. NaN or infinity make the scale NaN or infinite, and the numbers 0.
    """
    groups = F.pad(x, (0, -x.shape[1] % group_size)).unflatten(1, (-1, group_size))
    magnitude = groups.abs().amax(dim=2)
    magnitude = torch.where(magnitude < SMALLEST_MAGNITUDE, 0.0, magnitude)
    usable = magnitude.isfinite() & (magnitude > 0)
    inverse = torch.where(usable, magnitude.new_tensor(127) / magnitude, 0.0)  # 127 / x would round 1 / x first
    exact = groups.double() * inverse[..., None].double()
    numbers = torch.where(usable[..., None], exact, 0.0).round()
    return numbers.to(torch.int32), magnitude / 127


def fused_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c in fp32, rounded once.

    The product is exact in fp64. The sum is rounded to odd there (Boldo and Melquiond 2008), after which rounding to
    fp32 is as if it were the only one.
    """
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    rest = total - product
    error = (product - (total - rest)) + (addend - rest)  # what rounding took away, exactly (Knuth's two-sum)
    is_even = (total.view(torch.int64) & 1) == 0
    towards = torch.where(error > 0, torch.inf, -torch.inf).double()
    odd = torch.where((error != 0) & error.isfinite() & is_even, torch.nextafter(total, towards), total)
    return odd.float()
