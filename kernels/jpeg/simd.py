"""Vectors of 32 uint16 as values of Numba kernels, with operations on them in LLVM code.

LLVM's loop vectoriser uses half the registers' width and treats loops over 96 samples as if they
were thousands. LLVM splits these vectors for processors with narrower registers.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

from llvmlite import ir
from numba import njit, types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from coreset.kernels.jit import Function

Untyped: TypeAlias = Any  # objects of Numba and llvmlite

LANES = 32  # numbers in a vector of 512 bits, the width of the widest registers
_PART_BITS = 128  # shuffles within parts of this width are cheap on every processor
_BYTE, _WORD, _INDEX = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_VECTOR = ir.VectorType(_WORD, LANES)


def inner(function: Function) -> Function:
    """Compile for other kernels only, without entry points for Python and C: a third less time."""
    options: Untyped = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast("Function", njit(**options)(function))


instruction = cast("Callable[[Callable[..., Untyped]], Callable[..., Untyped]]", intrinsic)
"""Define an operation of kernels by a generator of LLVM code."""


class _Lanes(types.Type):
    """A vector of 32 uint16."""


_LANES_TYPE = _Lanes("Lanes")


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Untyped, kind: Untyped) -> None:
        super().__init__(manager, kind, _VECTOR)


@instruction
def splat(_typing: Untyped, _number: Untyped) -> Untyped:
    """Repeat a uint16 32 times."""

    def emit(_context: Untyped, builder: Untyped, _signature: Untyped, args: Untyped) -> Untyped:
        return _splat(builder, args[0], LANES)

    return _LANES_TYPE(types.uint16), emit


@instruction
def add_product(
    _typing: Untyped, total: Untyped, source: Untyped, _at: Untyped, weights: Untyped
) -> Untyped:
    """Return ``total + (source[at : at + 32] * weights >> 16)``, without a check of bounds.

    uint8 samples get 8 fraction bits first.
    """
    n_bits = source.dtype.bitwidth

    def emit(context: Untyped, builder: Untyped, signature: Untyped, args: Untyped) -> Untyped:
        place = _address(context, builder, signature.args[1], args[1], args[2])
        samples = _load(builder, place, ir.VectorType(ir.IntType(n_bits), LANES))
        if n_bits == 8:
            samples = builder.shl(builder.zext(samples, _VECTOR), _filled(_VECTOR, 8))
        wide = ir.VectorType(_INDEX, LANES)
        product = builder.mul(builder.zext(samples, wide), builder.zext(args[3], wide))
        high = builder.trunc(builder.lshr(product, _filled(wide, 16)), _VECTOR)  # one instruction
        return builder.add(args[0], high)

    return _LANES_TYPE(total, source, types.intp, weights), emit


@instruction
def store(_typing: Untyped, total: Untyped, target: Untyped, _at: Untyped) -> Untyped:
    """Set ``target[at : at + 32] = total``, unchecked; a uint8 target drops 8 fraction bits."""
    n_bits = target.dtype.bitwidth

    def emit(context: Untyped, builder: Untyped, signature: Untyped, args: Untyped) -> Untyped:
        place, values = _address(context, builder, signature.args[1], args[1], args[2]), args[0]
        if n_bits == 8:
            values = builder.lshr(values, _filled(_VECTOR, 8))
            values = builder.trunc(values, ir.VectorType(_BYTE, LANES))
        _store(builder, place, values)
        return context.get_dummy_value()

    return types.void(total, target, types.intp), emit


@instruction
def transpose_in(
    _typing: Untyped, source: Untyped, _at: Untyped, _stride: Untyped,
    target: Untyped, _to: Untyped,
) -> Untyped:  # fmt: skip
    """Transpose 32 rows of 8 uint16, ``stride`` apart, to 8 vectors from ``target[to]`` on."""
    n = _PART_BITS // 16

    def emit(context: Untyped, builder: Untyped, signature: Untyped, args: Untyped) -> Untyped:
        def part(row: int) -> Untyped:
            at = builder.add(args[1], builder.mul(args[2], ir.Constant(args[2].type, row)))
            place = _address(context, builder, signature.args[0], args[0], at)
            return _load(builder, place, ir.VectorType(_WORD, n))

        vectors = [
            _concatenated(builder, [part(row) for row in range(i, LANES, n)]) for i in range(n)
        ]
        for number, vector in enumerate(_transposed(builder, vectors)):
            at = builder.add(args[4], ir.Constant(args[4].type, number * LANES))
            _store(builder, _address(context, builder, signature.args[3], args[3], at), vector)
        return context.get_dummy_value()

    place = types.intp
    return types.void(source, place, place, target, place), emit


@instruction
def transpose_out(
    _typing: Untyped, source: Untyped, _at: Untyped,
    target: Untyped, _to: Untyped, _stride: Untyped,
) -> Untyped:  # fmt: skip
    """Transpose 16 vectors of 32 uint8, or 8 of uint16, from ``source[at]`` on to 32 rows.

    The rows are ``stride`` apart.
    """
    n_bits = source.dtype.bitwidth
    n = _PART_BITS // n_bits

    def emit(context: Untyped, builder: Untyped, signature: Untyped, args: Untyped) -> Untyped:
        def vector(number: int) -> Untyped:
            at = builder.add(args[1], ir.Constant(args[1].type, number * LANES))
            place = _address(context, builder, signature.args[0], args[0], at)
            return _load(builder, place, ir.VectorType(ir.IntType(n_bits), LANES))

        rows = _transposed(builder, [vector(number) for number in range(n)])
        for row in range(LANES):
            at = builder.add(args[3], builder.mul(args[4], ir.Constant(args[4].type, row)))
            own = _indices(range(row - row % n, row - row % n + n))
            part = builder.shuffle_vector(rows[row % n], rows[row % n], own)
            _store(builder, _address(context, builder, signature.args[2], args[2], at), part)
        return context.get_dummy_value()

    place = types.intp
    return types.void(source, place, target, place, place), emit


@instruction
def stream_planes(
    _typing: Untyped, _pixels: Untyped, _factors: Untyped, _planes: Untyped, _stride: Untyped
) -> Untyped:
    """Write 16 RGB pixels as float32 ``pixel * factors[0, c] + factors[1, c]`` to three planes.

    All arguments are addresses; the planes begin ``stride`` bytes apart. The stores bypass the
    caches, which a batch of planes exceeds. The targets must be multiples of 64 bytes (or the
    process dies), and `fence` must follow.
    """
    n, number = 16, ir.FloatType()

    def emit(context: Untyped, builder: Untyped, _signature: Untyped, args: Untyped) -> Untyped:
        pixels, factors, planes, stride = args
        samples = _load(builder, _pointer(builder, pixels), ir.VectorType(_BYTE, 3 * n))
        numbers = builder.inttoptr(factors, number.as_pointer())

        def factor(row: int, channel: int) -> Untyped:
            place = builder.gep(numbers, [ir.Constant(_INDEX, 3 * row + channel)])
            return _splat(builder, builder.load(place), n)

        for channel in range(3):
            own = builder.shuffle_vector(samples, samples, _indices(range(channel, 3 * n, 3)))
            values = builder.uitofp(own, ir.VectorType(number, n))
            values = builder.fadd(builder.fmul(values, factor(0, channel)), factor(1, channel))
            place = builder.add(planes, builder.mul(stride, ir.Constant(stride.type, channel)))
            _stream(builder, _pointer(builder, place), values)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), emit


@instruction
def stream_bytes(_typing: Untyped, _source: Untyped, _target: Untyped) -> Untyped:
    """Copy 32 bytes from an address to another, past the caches.

    The target must be a multiple of 32 bytes (or the process dies), and `fence` must follow.
    """
    kind = ir.VectorType(_BYTE, LANES)

    def emit(context: Untyped, builder: Untyped, _signature: Untyped, args: Untyped) -> Untyped:
        values = _load(builder, _pointer(builder, args[0]), kind)
        _stream(builder, _pointer(builder, args[1]), values)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@instruction
def fence(_typing: Untyped) -> Untyped:
    """Make streamed stores visible to other threads."""

    def emit(context: Untyped, builder: Untyped, _signature: Untyped, _args: Untyped) -> Untyped:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), emit


def _transposed(builder: Untyped, vectors: list[Untyped]) -> list[Untyped]:
    """Transpose n vectors part by part, where each part has n numbers.

    Interleaving vector i with vector i + n/2, log2(n) times, is a transposition.
    """
    n, size = len(vectors), vectors[0].type.count
    turns = [k // 2 + k % 2 * size for k in range(n)]
    halves = [
        _indices([part + half + turn for part in range(0, size, n) for turn in turns])
        for half in (0, n // 2)
    ]
    for _ in range(n.bit_length() - 1):
        vectors = [
            builder.shuffle_vector(vectors[i], vectors[i + n // 2], half)
            for i in range(n // 2)
            for half in halves
        ]
    return vectors


def _splat(builder: Untyped, number: Untyped, n: int) -> Untyped:
    nothing = ir.Constant(ir.VectorType(number.type, n), ir.Undefined)
    first = builder.insert_element(nothing, number, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(first, nothing, _indices([0] * n))


def _concatenated(builder: Untyped, parts: list[Untyped]) -> Untyped:
    while len(parts) > 1:
        both = _indices(range(2 * parts[0].type.count))
        parts = [
            builder.shuffle_vector(parts[i], parts[i + 1], both) for i in range(0, len(parts), 2)
        ]
    return parts[0]


def _indices(numbers: Sequence[int]) -> Untyped:
    return ir.Constant(ir.VectorType(_INDEX, len(numbers)), [*numbers])


def _filled(kind: Untyped, number: int) -> Untyped:
    return ir.Constant(kind, [number] * LANES)


def _address(
    context: Untyped, builder: Untyped, kind: Untyped, array: Untyped, at: Untyped
) -> Untyped:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _pointer(builder: Untyped, address: Untyped) -> Untyped:
    return builder.inttoptr(address, _BYTE.as_pointer())


def _load(builder: Untyped, place: Untyped, kind: Untyped) -> Untyped:
    return builder.load(builder.bitcast(place, kind.as_pointer()), align=1)


def _store(builder: Untyped, place: Untyped, values: Untyped) -> None:
    builder.store(values, builder.bitcast(place, values.type.as_pointer()), align=1)


def _stream(builder: Untyped, place: Untyped, values: Untyped) -> None:
    """Store a vector past the caches, at an address that is a multiple of its bytes."""
    n_bytes = values.type.count * (1 if values.type.element == _BYTE else 4)
    place = builder.bitcast(place, values.type.as_pointer())
    stored = builder.store(values, place, align=n_bytes)
    stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_INDEX, 1)]))
