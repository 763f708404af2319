"""How a function becomes machine code: by Numba, every sum in the order it is written, and no Python left in it.

What is compiled allocates nothing, raises nothing and calls nothing of Numba's: its object code can be kept in a file
and called without Numba, whose import takes a second (`machine`).
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from llvmlite import binding, ir
from numba import extending, types
from numba.core import cgutils
from numba.np.arrayobj import populate_array
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
Real = Any
"""A float32 or a float64: which one, a compiled function learns from its arguments."""
Reals = NDArray[Any]
Ints = NDArray[Any]

OPTIONS: Any = {
    "nogil": True,
    "error_model": "numpy",  # a division by 0 is what IEEE 754 says
    "fastmath": {"contract", "nsz"},  # a product and a sum in one rounding; nothing that would reorder a sum
    "_nrt": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


def compiled(function: F) -> F:
    """The function, for others that are compiled to call."""
    made: F = numba.njit(**OPTIONS)(function)
    return made


def intrinsic(function: Callable[..., Any]) -> Any:
    """A function that writes LLVM's code itself: it is given types and returns a signature and what writes."""
    return extending.intrinsic(function)


def real(value: float, like: Real) -> Real:
    """A constant in the type of another number, or of an array's: Numba takes a bare one for a float64."""
    return type(like)(value)


@extending.overload(real, jit_options=OPTIONS)
def _real(value: Any, like: Any) -> Any:
    kind = like.dtype if isinstance(like, types.Array) else like

    def constant(value: Any, like: Any) -> Any:
        return kind(value)

    return constant


@intrinsic
def at(typingctx: Any, kind: Any, address: Any) -> Any:
    """The numbers of a kind that stand at an address, as long as nobody asks how many they are."""
    result = types.Array(kind.dtype, 1, "C")

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[1], context.get_data_type(result.dtype).as_pointer())
        nothing = context.get_constant(types.intp, 0)
        return _array(context, builder, signature.return_type, pointer, [nothing])

    return result(kind, types.intp), generate


@intrinsic
def part(typingctx: Any, array: Any, start: Any, n: Any) -> Any:
    """array[start : start + n] of an array seen as flat."""
    result = types.Array(array.dtype, 1, "C")
    return result(array, types.intp, types.intp), _view


@intrinsic
def grid(typingctx: Any, array: Any, start: Any, rows: Any, columns: Any) -> Any:
    """The same as (rows, columns)."""
    result = types.Array(array.dtype, 2, "C")
    return result(array, types.intp, types.intp, types.intp), _view


@intrinsic
def copy(typingctx: Any, out: Any, place: Any, source: Any, start: Any, n: Any) -> Any:
    """out[place : place + n] = source[start : start + n] of arrays seen as flat, that do not overlap."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        to, of = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2))
        size = context.get_abi_sizeof(context.get_data_type(signature.args[0].dtype))
        cgutils.raw_memcpy(builder, builder.gep(to, [args[1]]), builder.gep(of, [args[3]]), args[4], size)
        return context.get_dummy_value()

    return types.void(out, types.intp, source, types.intp, types.intp), generate


@intrinsic
def flushing(typingctx: Any, mode: Any) -> Any:
    """Set how this thread treats numbers too small to be normal, which cost x86 a hundred cycles each.

    -1: as 0 from now on, and what is returned makes it as it was. On other processors nothing changes.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        if not binding.get_process_triple().startswith(("x86_64", "amd64")):
            return args[0]
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte])
        store = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.stmxcsr")
        load = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.ldmxcsr")
        place = cgutils.alloca_once(builder, word)
        builder.call(store, [builder.bitcast(place, byte)])
        before = builder.load(place)
        asked = builder.icmp_signed("<", args[0], args[0].type(0))
        flushed = builder.or_(before, word(0x8040))  # flush to zero, and take for zero
        builder.store(builder.select(asked, flushed, builder.trunc(args[0], word)), place)
        builder.call(load, [builder.bitcast(place, byte)])
        return builder.zext(before, args[0].type)

    return types.int64(types.int64), generate


def _view(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    whole = context.make_array(signature.args[0])(context, builder, args[0])
    return _array(context, builder, signature.return_type, builder.gep(whole.data, [args[1]]), args[2:])


def _array(context: Any, builder: ir.IRBuilder, kind: Any, pointer: Any, shape: Any) -> Any:
    size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    strides = [size]
    for side in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], side))
    made = context.make_array(kind)(context, builder)
    populate_array(made, data=pointer, shape=shape, strides=strides, itemsize=size, meminfo=None)
    return made._getvalue()
