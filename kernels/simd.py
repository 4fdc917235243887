"""Instructions that Numba's loops do not become by themselves, as generators of LLVM code."""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Untyped: TypeAlias = Any
"""Objects of Numba and llvmlite, which have no types for pyright."""
Function = TypeVar("Function", bound=Callable[..., Untyped])


def inner(function: Function) -> Function:
    """Compile for other kernels: no ways in from Python and C, a third less time."""
    options = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast("Function", njit(**cast("Untyped", options))(function))


def _instruction(function: Callable[..., Untyped]) -> Callable[..., Untyped]:
    """Compile by a generator of LLVM code, for what Numba's loops do not become by themselves."""
    return intrinsic(function)


@_instruction
def fixed(_typing: Untyped, sample: Untyped) -> Untyped:
    """uint8 as uint16 with 8 fraction bits; a uint16 has them already."""

    def generate(
        _context: Untyped, builder: Untyped, _signature: Untyped, args: Untyped
    ) -> Untyped:
        if sample.bitwidth == 16:
            return args[0]
        word = ir.IntType(16)
        return builder.shl(builder.zext(args[0], word), ir.Constant(word, 8))

    return types.uint16(sample), generate


@_instruction
def truncated(_typing: Untyped, total: Untyped, into: Untyped) -> Untyped:
    """A sum with 8 fraction bits as a sample of ``into``: uint16 as it is, uint8 without them."""

    def generate(
        _context: Untyped, builder: Untyped, _signature: Untyped, args: Untyped
    ) -> Untyped:
        if into.dtype.bitwidth == 16:
            return args[0]
        word = ir.IntType(16)
        return builder.trunc(builder.lshr(args[0], ir.Constant(word, 8)), ir.IntType(8))

    return into.dtype(total, into), generate


@_instruction
def high_product(_typing: Untyped, _a: Untyped, _b: Untyped) -> Untyped:
    """(a * b) >> 16 of uint16: one instruction for a whole vector of them.

    With 32-bit products the whole resize takes twice as long: LLVM no longer sees what they are
    once the widening of the weight has left the loop. Its fixed-point product stays what it is.
    """

    def generate(
        _context: Untyped, builder: Untyped, _signature: Untyped, args: Untyped
    ) -> Untyped:
        word, n_fraction_bits = ir.IntType(16), ir.Constant(ir.IntType(32), 16)
        kind = ir.FunctionType(word, (word, word, ir.IntType(32)))
        multiply = cgutils.get_or_insert_function(builder.module, kind, "llvm.umul.fix.i16")
        return builder.call(multiply, (*args, n_fraction_bits))

    return types.uint16(types.uint16, types.uint16), generate


@_instruction
def transpose_square(
    _typing: Untyped, source: Untyped, _at: Untyped, _stride: Untyped,
    target: Untyped, _to: Untyped, _to_stride: Untyped,
) -> Untyped:  # fmt: skip
    """Transpose as many rows as fit samples in 128 bits (16 uint8, 8 uint16) in registers.

    Interleaving row i with row i + n/2, log2(n) times, is a transposition. Element by element,
    the whole resize takes twice as long.
    """
    bits = source.dtype.bitwidth
    n = 128 // bits
    vector = ir.VectorType(ir.IntType(bits), n)

    def generate(context: Untyped, builder: Untyped, signature: Untyped, args: Untyped) -> Untyped:
        def address(array: int, row: int) -> Untyped:
            data = context.make_array(signature.args[array])(context, builder, args[array]).data
            step = builder.mul(args[array + 2], ir.Constant(args[array + 2].type, row))
            place = builder.gep(data, [builder.add(args[array + 1], step)])
            return builder.bitcast(place, vector.as_pointer())

        rows = [builder.load(address(0, row), align=1) for row in range(n)]
        halves = [
            ir.Constant(
                ir.VectorType(ir.IntType(32), n), [half + k // 2 + k % 2 * n for k in range(n)]
            )
            for half in (0, n // 2)
        ]
        for _ in range(n.bit_length() - 1):
            rows = [
                builder.shuffle_vector(rows[i], rows[i + n // 2], half)
                for i in range(n // 2)
                for half in halves
            ]
        for row, values in enumerate(rows):
            builder.store(values, address(3, row), align=1)
        return context.get_dummy_value()

    place = types.intp
    return types.void(source, place, place, target, place, place), generate
