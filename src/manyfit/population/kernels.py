"""What torch has no kernel for on a GPU: sums whose rounding depends on nothing but what is summed, and permutations.

torch.sum shares its terms among threads by how many sums there are; torch.randperm draws other permutations on a GPU
than on a CPU, one at a time. Imported where there is a GPU, and Triton with it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 64, 32  # added up at once by one program
WORDS = 624  # of the state of a Mersenne twister
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


@triton.jit(do_not_specialize=["n"])  # type: ignore[untyped-decorator]
def _permute(seeds, words, partners, out, n, lanes: tl.constexpr, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """One member: a twister is seeded, and every place from the first on swapped with one that is not before it."""
    member = tl.program_id(0).to(tl.int64)
    words, partners, out = words + member * size, partners + member * size, out + member * n
    word = tl.load(seeds + member).to(tl.uint32, bitcast=True)
    tl.store(words, word.to(tl.int32, bitcast=True))
    for j in range(1, size):
        word = (word ^ (word >> 30)) * 1812433253 + j
        tl.store(words + j, word.to(tl.int32, bitcast=True))
    lane = tl.arange(0, lanes)
    for first in range(0, n, lanes):
        tl.store(out + first + lane, (first + lane).to(tl.int64), mask=first + lane < n)
    tl.debug_barrier()
    for first in range(0, n - 1, size):
        for start in tl.static_range(0, size, 227):  # of 624 words, those that need no word made beside them
            place = start + lane
            mine = (lane < 227) & (place < size)
            here = tl.load(words + place, mask=mine, other=0).to(tl.uint32, bitcast=True)
            after = tl.load(words + (place + 1) % size).to(tl.uint32, bitcast=True)
            far = tl.load(words + (place + 397) % size).to(tl.uint32, bitcast=True)
            mixed = (here & 0x80000000) | (after & 0x7FFFFFFF)
            made = far ^ (mixed >> 1) ^ ((mixed & 1) * 0x9908B0DF)
            tl.debug_barrier()
            tl.store(words + place, made.to(tl.int32, bitcast=True), mask=mine)
            made ^= made >> 11
            made ^= (made << 7) & 0x9D2C5680
            made ^= (made << 15) & 0xEFC60000
            made ^= made >> 18
            left = tl.maximum(n - first - place, 1).to(tl.uint32)
            tl.store(partners + place, first + place + (made % left).to(tl.int32), mask=mine)
            tl.debug_barrier()
        for i in range(first, min(first + size, n - 1)):  # one thread's work: it sees what it wrote
            partner = tl.load(partners + i - first)
            a, b = tl.load(out + i), tl.load(out + partner)
            tl.store(out + i, b)
            tl.store(out + partner, a)
        tl.debug_barrier()


def permutations(seeds: Tensor, n: int) -> Tensor:
    """What `torch.randperm(n)` draws on a CPU after each of these seeds (members,), int64: (members, n), int64.

    For n < 2^31; torch draws from 64 bits from n = 2^32 / 20 on, and this differs there.

    Source: Matsumoto & Nishimura 1998 (MT19937), of whose seeds torch takes the low 32 bits; Fisher & Yates.
    """
    low = (seeds & 0xFFFFFFFF).to(torch.int32)
    words, partners = low.new_empty(len(low), WORDS), low.new_empty(len(low), WORDS)
    out = seeds.new_empty(len(low), n)
    _permute[(len(low),)](low, words, partners, out, n, 256, WORDS, num_warps=1)
    return out
