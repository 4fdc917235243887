"""Call C functions from Numba kernels, including functions that exit through ``longjmp``.

A kernel that calls `setjmp`, and every function between it and the function that jumps, holds only
numbers, addresses and tuples of them (README.md says why), and uses memory by `load_at` and
`store_at`.
"""

import os
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from coreset.kernels.jit import kernel
from coreset.kernels.jpeg.simd import Untyped, inner, instruction

_BYTE, _INT, _WORD = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_POINTER, _VOID = _BYTE.as_pointer(), ir.VoidType()
_LONG, _SHORT = types.int64, types.int32  # C's long, size_t and addresses; C's int
pread: Untyped = types.ExternalFunction("pread", _LONG(_SHORT, _LONG, _LONG, _LONG))
"""C's, for kernels: descriptor, address, bytes, offset."""
_preadv2: Untyped = types.ExternalFunction("preadv2", _LONG(_SHORT, _LONG, _SHORT, _LONG, _SHORT))
_NOWAIT = os.RWF_NOWAIT


@instruction
def call_c(_typing: Untyped, _function: Untyped, arguments: Untyped) -> Untyped:
    """Call the function at an address with a tuple of addresses and whole numbers.

    The result is int64; of a C ``int`` only the lower half counts.
    """

    def emit(_context: Untyped, builder: Untyped, _signature: Untyped, args: Untyped) -> Untyped:
        passed = [
            builder.sext(number, _WORD) if number.type.width < _WORD.width else number
            for number in cgutils.unpack_tuple(builder, args[1])
        ]
        kind = ir.FunctionType(_WORD, [_WORD] * len(passed))
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), passed)

    return types.int64(types.int64, arguments), emit


@instruction
def setjmp(_typing: Untyped, _buffer: Untyped) -> Untyped:
    """Call C's ``setjmp``: return False now, and True after a jump to the buffer at this address.

    After a jump, the calling kernel must not use variables that it changed in between.
    """

    def emit(_context: Untyped, builder: Untyped, _signature: Untyped, args: Untyped) -> Untyped:
        kind = ir.FunctionType(_INT, [_POINTER])
        setjmp = cgutils.get_or_insert_function(builder.module, kind, "_setjmp")
        setjmp.attributes.add("returns_twice")
        came_back = builder.call(setjmp, [builder.inttoptr(args[0], _POINTER)])
        return builder.icmp_signed("!=", came_back, _INT(0))

    return types.boolean(types.int64), emit


@inner
def address_of(array: NDArray[Any]) -> int:
    """Return the address of an array, signed: Numba adds unsigned to signed numbers as floats."""
    return np.int64(array.ctypes.data)  # pyright: ignore[reportReturnType] - Numba's int


@instruction
def load_at(_typing: Untyped, _address: Untyped, kind: Untyped) -> Untyped:
    """Read a number of a NumPy type at an address, unchecked."""

    def emit(context: Untyped, builder: Untyped, signature: Untyped, args: Untyped) -> Untyped:
        value = context.get_value_type(signature.return_type)
        return builder.load(builder.inttoptr(args[0], value.as_pointer()), align=1)

    return kind.instance_type(types.int64, kind), emit


@instruction
def store_at(_typing: Untyped, _address: Untyped, number: Untyped) -> Untyped:
    """Write a number, in as many bytes as its type has, to an address, unchecked."""

    def emit(context: Untyped, builder: Untyped, _signature: Untyped, args: Untyped) -> Untyped:
        place = builder.inttoptr(args[0], args[1].type.as_pointer())
        builder.store(args[1], place, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, number), emit


@instruction
def fetch_add(_typing: Untyped, counter: Untyped) -> Untyped:
    """Add 1 atomically to the only number of an int64 array and return the number before."""

    def emit(context: Untyped, builder: Untyped, signature: Untyped, args: Untyped) -> Untyped:
        place = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", place, _WORD(1), "monotonic")

    return types.int64(counter), emit


@instruction
def longjmp_address(_typing: Untyped) -> Untyped:
    """Return the address of ``void f(void **p)``, which jumps to the buffer at ``p[3]``."""

    def emit(_context: Untyped, builder: Untyped, _signature: Untyped, _args: Untyped) -> Untyped:
        kind = ir.FunctionType(_VOID, [_POINTER, _INT])
        longjmp = cgutils.get_or_insert_function(builder.module, kind, "longjmp")
        kind = ir.FunctionType(_VOID, [_POINTER])
        function = ir.Function(builder.module, kind, "coreset_longjmp")
        function.linkage = "internal"
        body = ir.IRBuilder(function.append_basic_block())
        pointers = body.bitcast(function.args[0], _POINTER.as_pointer())
        body.call(longjmp, [body.load(body.gep(pointers, [_INT(3)])), _INT(1)])
        body.unreachable()
        return builder.ptrtoint(function, _WORD)

    return types.int64(), emit


@kernel
def all_cached(descriptors: NDArray[np.int64], offsets: NDArray[np.int64]) -> bool:
    """Test in one call whether the byte at an offset of each of many files is in the page cache.

    Thread safe; releases the interpreter. The first call compiles. False also where the file system
    cannot say, or a file is not open or ends before the byte.
    """
    memory = np.empty(3, np.int64)
    vector = address_of(memory)
    memory[0], memory[1] = vector + 16, 1  # struct iovec, and the place of the byte
    for descriptor, offset in zip(descriptors, offsets):  # noqa: B905 - Numba has no strict
        if _preadv2(descriptor, vector, 1, offset, _NOWAIT) != 1:
            return False
    return memory[1] == 1  # Numba frees the memory after its last use


@kernel
def read_ranges(
    descriptors: NDArray[np.int64],
    offsets: NDArray[np.int64],
    lengths: NDArray[np.int64],
    places: NDArray[np.int64],
    memory: NDArray[np.uint8],
) -> NDArray[np.int64]:
    """Read ranges of files to places in ``memory``; return the bytes read of each.

    Thread safe; releases the interpreter. The first call compiles. What would exceed the memory is
    not read.
    """
    n_read = np.zeros_like(lengths)
    for at in range(lengths.size):
        if 0 < lengths[at] <= memory.size - places[at]:
            target = address_of(memory) + places[at]
            n_read[at] = pread(descriptors[at], target, lengths[at], offsets[at])
    return n_read
