"""Products of matrices in tiles that stay in registers.

Each element is a sum in the order of its terms, whatever tile it falls into: a row of a product does not depend on the
rows beside it.
"""

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils

from manyfit.native.compiled import Reals, compiled, intrinsic


def _vector_bytes() -> int:
    features = binding.get_host_cpu_features()
    return 64 if features.get("avx512f") else 32 if features.get("avx2") else 16


BYTES = _vector_bytes()  # of this processor's vectors


def _tile(rows: int, vectors: int, masked: bool) -> Any:
    """An intrinsic: rows x (vectors of columns) of a product. With a mask only so many columns are there."""

    @intrinsic
    def tile(
        typingctx: Any,
        a: Any,
        row: Any,
        term: Any,
        b: Any,
        width: Any,
        out: Any,
        start: Any,
        column: Any,
        columns: Any,
        terms: Any,
        fresh: Any,
    ) -> Any:
        n = types.intp
        return types.void(a, n, n, b, n, out, n, n, n, n, types.boolean), generate

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        a, b, out = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3, 5))
        row, term, width, start, column, columns, terms, fresh = (args[i] for i in (1, 2, 4, 6, 7, 8, 9, 10))
        number = context.get_data_type(signature.args[0].dtype)
        size = context.get_abi_sizeof(number)
        lanes = BYTES // size
        vector, integer = ir.VectorType(number, lanes), ir.IntType(64)
        module, name = builder.module, f"v{lanes}f{8 * size}"
        mask = None
        if masked:
            numbers = ir.Constant(ir.VectorType(integer, lanes), list(range(lanes)))
            limit = builder.shuffle_vector(
                builder.insert_element(
                    ir.Constant(numbers.type, ir.Undefined), columns, ir.Constant(ir.IntType(32), 0)
                ),
                ir.Constant(numbers.type, ir.Undefined),
                ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes),
            )
            mask = builder.icmp_signed("<", numbers, limit)
        align = ir.Constant(ir.IntType(32), size)
        fused = cgutils.get_or_insert_function(module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.{name}")
        pointer = vector.as_pointer()
        bits = ir.VectorType(ir.IntType(1), lanes)
        loaded = cgutils.get_or_insert_function(
            module, ir.FunctionType(vector, [pointer, ir.IntType(32), bits, vector]), f"llvm.masked.load.{name}.p0"
        )
        stored = cgutils.get_or_insert_function(
            module,
            ir.FunctionType(ir.VoidType(), [vector, pointer, ir.IntType(32), bits]),
            f"llvm.masked.store.{name}.p0",
        )
        zero = ir.Constant(vector, [0.0] * lanes)

        def load(place: ir.Value) -> ir.Value:
            place = builder.bitcast(place, pointer)
            if mask is not None:
                return builder.call(loaded, [place, align, mask, zero])
            return builder.load(place, align=size)

        def splat(value: ir.Value) -> ir.Value:
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)

        def place_of(r: int, v: int) -> ir.Value:
            line = builder.add(start, ir.Constant(integer, r))
            here = builder.add(builder.mul(line, width), builder.add(column, ir.Constant(integer, v * lanes)))
            return builder.gep(out, [here])

        cells = [(r, v) for r in range(rows) for v in range(vectors)]
        sums = {cell: cgutils.alloca_once(builder, vector) for cell in cells}
        for cell in cells:
            builder.store(builder.select(fresh, zero, load(place_of(*cell))), sums[cell])
        with cgutils.for_range(builder, terms) as loop:
            line = builder.add(builder.mul(loop.index, width), column)
            factors = [
                load(builder.gep(b, [builder.add(line, ir.Constant(integer, v * lanes))])) for v in range(vectors)
            ]
            for r in range(rows):
                here = builder.add(
                    builder.mul(builder.add(start, ir.Constant(integer, r)), row), builder.mul(loop.index, term)
                )
                factor = splat(builder.load(builder.gep(a, [here])))
                for v in range(vectors):
                    builder.store(builder.call(fused, [factor, factors[v], builder.load(sums[r, v])]), sums[r, v])
        for cell in cells:
            place = builder.bitcast(place_of(*cell), pointer)
            if mask is not None:
                builder.call(stored, [builder.load(sums[cell]), place, align, mask])
            else:
                builder.store(builder.load(sums[cell]), place, align=size)
        return context.get_dummy_value()

    return tile


TALL = 8 if BYTES == 64 else 4  # rows of a tile, whose sums stay in registers: AVX-512 has twice as many of these
tall, wide, line = _tile(TALL, 2, False), _tile(4, 2, False), _tile(1, 1, True)
narrow, narrow_rest = _tile(8, 1, False), _tile(8, 1, True)


@compiled
def multiply(
    a: Reals, row: int, term: int, b: Reals, out: Reals, rows: int, terms: int, columns: int, fresh: bool
) -> None:
    """`out[i, j] (+)= sum over t of a[i, t] b[t, j]`, a sum in the order of t.

    Args:
        a: Flat; element (i, t) stands at i * row + t * term.
        row: See there.
        term: See there.
        b: Flat, (terms, columns).
        out: Flat, (rows, columns).
        rows: Of out.
        terms: Of the sums.
        columns: Of b and out.
        fresh: Whether out is written, instead of added to.
    """
    lanes = BYTES // a.itemsize
    for j in range(0, columns, 2 * lanes):
        left = columns - j
        if left >= 2 * lanes:
            whole = rows - rows % TALL
            for i in range(0, whole, TALL):
                tall(a, row, term, b, columns, out, i, j, left, terms, fresh)
            for i in range(whole, rows - 3, 4):
                wide(a, row, term, b, columns, out, i, j, left, terms, fresh)
            for i in range(rows - rows % 4, rows):
                line(a, row, term, b, columns, out, i, j, lanes, terms, fresh)
                line(a, row, term, b, columns, out, i, j + lanes, lanes, terms, fresh)
        else:
            if left >= lanes:
                for i in range(0, rows - 7, 8):
                    narrow(a, row, term, b, columns, out, i, j, lanes, terms, fresh)
                for i in range(rows - rows % 8, rows):
                    line(a, row, term, b, columns, out, i, j, lanes, terms, fresh)
            first = j + lanes if left >= lanes else j
            rest = columns - first
            if rest > 0:
                for i in range(0, rows - 7, 8):
                    narrow_rest(a, row, term, b, columns, out, i, first, rest, terms, fresh)
                for i in range(rows - rows % 8, rows):
                    line(a, row, term, b, columns, out, i, first, rest, terms, fresh)


@intrinsic
def turn(typingctx: Any, w: Any, start: Any, width: Any, out: Any, place: Any, height: Any) -> Any:
    """A square of as many rows as a vector has lanes, from w (flat, rows of a width) into out (rows of a height)."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        source, target = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3))
        number = context.get_data_type(signature.args[0].dtype)
        size = context.get_abi_sizeof(number)
        lanes = BYTES // size
        vector, integer, short = ir.VectorType(number, lanes), ir.IntType(64), ir.IntType(32)

        def row(base: ir.Value, at: ir.Value, stride: ir.Value, i: int) -> ir.Value:
            place = builder.gep(base, [builder.add(at, builder.mul(stride, integer(i)))])
            return builder.bitcast(place, vector.as_pointer())

        rows = [builder.load(row(source, args[1], args[2], i), align=size) for i in range(lanes)]
        low = [i // 2 + lanes * (i % 2) for i in range(lanes)]  # of two vectors in turn, their first halves
        masks = [ir.Constant(ir.VectorType(short, lanes), [short(i + add) for i in low]) for add in (0, lanes // 2)]
        for _ in range(lanes.bit_length() - 1):
            pairs = list(zip(rows[: lanes // 2], rows[lanes // 2 :], strict=True))
            rows = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in masks]
        for i, values in enumerate(rows):
            builder.store(values, row(target, args[4], args[5], i), align=size)
        return context.get_dummy_value()

    n = types.intp
    return types.void(w, n, n, out, n, n), generate


@compiled
def transpose(w: Reals, rows: int, columns: int, out: Reals) -> None:
    """`out (columns, rows) = w' (rows, columns)`, both flat."""
    lanes = BYTES // w.itemsize
    whole_rows, whole_columns = rows - rows % lanes, columns - columns % lanes
    for i in range(0, whole_rows, lanes):
        for j in range(0, whole_columns, lanes):
            turn(w, i * columns + j, columns, out, j * rows + i, rows)
    for j in range(columns):
        for r in range(0 if j >= whole_columns else whole_rows, rows):
            out[j * rows + r] = w[r * columns + j]


@compiled
def norm(v: Reals) -> float:
    """Euclidean norm of v (n,), from four sums."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    whole = len(v) - len(v) % 4
    for i in range(0, whole, 4):
        a += np.float64(v[i]) * np.float64(v[i])
        b += np.float64(v[i + 1]) * np.float64(v[i + 1])
        c += np.float64(v[i + 2]) * np.float64(v[i + 2])
        d += np.float64(v[i + 3]) * np.float64(v[i + 3])
    for i in range(whole, len(v)):
        a += np.float64(v[i]) * np.float64(v[i])
    return float(np.sqrt((a + b) + (c + d)))
