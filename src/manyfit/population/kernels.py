"""What torch has no kernel for on a GPU: sums whose rounding depends on nothing but what is summed.

torch.sum shares its terms among threads by how many sums there are. Imported where there is a GPU, and Triton with it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 64, 32  # added up at once by one program
SIZES = ("rows", "width", "member_stride", "row_stride", "out_stride")


@triton.jit(do_not_specialize=SIZES)  # type: ignore[untyped-decorator]  # one order of additions for all sizes
def _add_rows(  # type: ignore[no-untyped-def]
    values, out, rows, width, member_stride, row_stride, out_stride, some_rows: tl.constexpr, some_columns: tl.constexpr
):
    """out[member, column] = the sum over the rows of values[member, row, column], block after block."""
    member = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * some_columns + tl.arange(0, some_columns)
    total = tl.zeros([some_columns], dtype=out.dtype.element_ty)
    for first in range(0, rows, some_rows):
        row = first + tl.arange(0, some_rows)
        there = (row[:, None] < rows) & (column[None, :] < width)
        place = values + member * member_stride + row[:, None] * row_stride + column[None, :]
        total += tl.sum(tl.load(place, mask=there, other=0.0).to(out.dtype.element_ty), 0)
    tl.store(out + member * out_stride + column, total, mask=column < width)


def sum_rows(values: Tensor, out: Tensor | None = None) -> Tensor:
    """The sum over the rows of (members, rows, width), in float32 or wider; or into `out` (members, width)."""
    members, rows, width = values.shape
    values = values if values.stride(2) == 1 or width == 1 else values.contiguous()
    if out is None:
        out = values.new_empty(members, width, dtype=torch.promote_types(values.dtype, torch.float32))
    strides = values.stride(0), values.stride(1), out.stride(0)
    _add_rows[members, triton.cdiv(width, COLUMNS)](values, out, rows, width, *strides, ROWS, COLUMNS)
    return out
