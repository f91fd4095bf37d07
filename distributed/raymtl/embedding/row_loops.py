"""Loops over table rows that numba compiles; kernels.py calls them with tensors.

Floats of a row go through explicit vectors: LLVM's own vectoriser joins several vectors at a time
and so leaves runs of 16 floats to single ones. Addresses are of memory that the caller keeps.
A loop made for some width must take no function from around it but from the module: numba would
find none of its kept code again.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_AHEAD = 32
"""Rows asked for before they are needed: about as long as memory takes to answer."""
_AHEAD_L2 = 48
"""The same of gradients, asked for to the second cache: a quarter less time than to the first."""
_LINE = 64
"""Bytes of a cache line."""
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_BYTE, _HALF, _WORD = ir.IntType(8), ir.IntType(16), ir.IntType(32)

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


def _prefetch(cache_level: int) -> Any:
    """Asks for the cache line at an address; harmless for any address."""

    @intrinsic
    def prefetch(typing: Any, address: Any) -> Any:
        del typing

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = _BYTE.as_pointer()
            function = builder.module.declare_intrinsic(
                "llvm.prefetch",
                [pointer],
                ir.FunctionType(ir.VoidType(), [pointer, _WORD, _WORD, _WORD]),
            )
            # Of data, to be read, to stay in caches from this level on.
            constants = [_WORD(0), _WORD(4 - cache_level), _WORD(1)]
            builder.call(function, [builder.inttoptr(arguments[0], pointer), *constants])
            return context.get_dummy_value()

        return types.void(types.uintp), generate

    return prefetch


_prefetch_l1: Any = _prefetch(1)
_prefetch_l2: Any = _prefetch(2)


@_compiled
def _prefetch_all(address: int, num_bytes: int) -> None:
    """Asks for all lines of some memory; where it is no whole lines it may end in one more."""
    for line in range(0, num_bytes, _LINE):
        _prefetch_l1(address + line)
    if num_bytes % _LINE:
        _prefetch_l1(address + num_bytes - 1)


@_compiled
def _prefetch_all_l2(address: int, num_bytes: int) -> None:
    """The same, to the second cache."""
    for line in range(0, num_bytes, _LINE):
        _prefetch_l2(address + line)
    if num_bytes % _LINE:
        _prefetch_l2(address + num_bytes - 1)


def _generate_float_at(typing: Any, address: Any) -> Any:
    """The float at an address."""
    del typing

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], _FLOAT.as_pointer()), align=4)

    return types.float32(types.uintp), generate


_float_at: Any = intrinsic(_generate_float_at)


def _generate_squares(typing: Any, address: Any, sums: Any) -> Any:
    """Adds the squares of four floats to four sums."""
    del typing
    four = types.UniTuple(types.float64, 4)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide, narrow = ir.VectorType(_DOUBLE, 4), ir.VectorType(_FLOAT, 4)
        total = wide(ir.Undefined)
        for lane, value in enumerate(cgutils.unpack_tuple(builder, arguments[1])):
            total = builder.insert_element(total, value, _WORD(lane))
        found = builder.load(builder.inttoptr(arguments[0], narrow.as_pointer()), align=4)
        found = builder.fpext(found, wide)
        total = builder.fadd(total, builder.fmul(found, found))
        lanes = [builder.extract_element(total, _WORD(lane)) for lane in range(4)]
        return context.make_tuple(builder, four, lanes)

    return four(types.uintp, four), generate


_add_squares: Any = intrinsic(_generate_squares)


def _everywhere(builder: Any, value: Any, lanes: int) -> Any:
    """A vector of one float."""
    unknown = ir.VectorType(_FLOAT, lanes)(ir.Undefined)
    first = builder.insert_element(unknown, value, _WORD(0))
    return builder.shuffle_vector(first, unknown, ir.VectorType(_WORD, lanes)([0] * lanes))


def _on_floats(
    compute: Callable[[Any, Any, Any, Any], Any], to: ir.Type = _FLOAT, source: ir.Type = _FLOAT
) -> Any:
    """On some numbers at two addresses: to = compute(builder, to, source, factor).

    Its arguments: how many, a constant; where to, where from, and a factor.
    """

    @intrinsic(prefer_literal=True)
    def on_lanes(typing: Any, lanes: Any, to_at: Any, source_at: Any, factor: Any) -> Any:
        del typing
        vectors = [ir.VectorType(kind, lanes.literal_value) for kind in (to, source)]

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            places = [
                builder.inttoptr(address, vector.as_pointer())
                for address, vector in zip(arguments[1:3], vectors, strict=True)
            ]
            aligns = [kind.get_abi_size(context.target_data) for kind in (to, source)]
            old, new = (
                builder.load(place, align=align)
                for place, align in zip(places, aligns, strict=True)
            )
            factors = _everywhere(builder, arguments[3], lanes.literal_value)
            builder.store(compute(builder, old, new, factors), places[0], align=aligns[0])
            return context.get_dummy_value()

        return types.void(lanes, types.uintp, types.uintp, types.float32), generate

    return on_lanes


def _fused(builder: Any, old: Any, new: Any, factor: Any) -> Any:
    """Rounds a product and its sum once where the processor can, as torch's embedding_bag does."""
    name = f"llvm.fmuladd.v{old.type.count}f32"
    function = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(old.type, [old.type] * 3), name
    )
    return builder.call(function, [factor, new, old])


def _bits(builder: Any, old: Any, new: Any, factor: Any) -> Any:
    """The nearest bfloat16, ties to even."""
    del factor
    words = ir.VectorType(_WORD, new.type.count)

    def all_(value: int) -> Any:
        return ir.Constant(words, [value] * new.type.count)

    word = builder.bitcast(new, words)
    odd = builder.and_(builder.lshr(word, all_(16)), all_(1))
    up = builder.lshr(builder.add(word, builder.add(odd, all_(0x7FFF))), all_(16))
    nan = builder.icmp_unsigned(">", builder.and_(word, all_(0x7FFFFFFF)), all_(0x7F800000))
    return builder.trunc(builder.select(nan, all_(0x7FC0), up), old.type)


def _fused_low(builder: Any, old: Any, new: Any, factor: Any) -> Any:
    """`_fused` of bfloat16's bits."""
    words = ir.VectorType(_WORD, new.type.count)
    shift = ir.Constant(words, [16] * new.type.count)
    wide = builder.bitcast(builder.shl(builder.zext(new, words), shift), old.type)
    return _fused(builder, old, wide, factor)


_zero = _on_floats(lambda builder, old, new, factor: old.type([0.0] * old.type.count))
_copy = _on_floats(lambda builder, old, new, factor: new)
_round = _on_floats(_bits, to=_HALF)
_add_scaled = _on_floats(_fused)
_add_scaled_low = _on_floats(_fused_low, source=_HALF)
_move = _on_floats(lambda builder, old, new, factor: builder.fsub(old, builder.fmul(factor, new)))


@_compiled
def _sum_of_squares(base: int, width: int) -> float:
    """Of floats from an address on, in four sums."""
    fours = width - width % 4
    sums = (0.0, 0.0, 0.0, 0.0)
    for d in range(0, fours, 4):
        sums = _add_squares(base + d * 4, sums)
    a, b, c, e = sums
    for d in range(fours, width):
        value = np.float64(_float_at(base + d * 4))
        a += value * value
    return (a + b) + (c + e)


@_compiled
def squares(base: int, width: int, out: Any, first: int, last: int) -> None:
    """Sums of squares of each view of rows first to last; `base`: address of the gradients."""
    views = out.shape[1]
    for i in range(first, last):
        for v in range(views):
            out[i, v] = _sum_of_squares(base + (i * views + v) * width * 4, width)


@cache
def adagrad(views: int, width: int) -> Any:
    """Row-wise Adagrad of rows `index`; `bases`: addresses of values, sums and gradients."""
    row_bytes = views * width * 4

    @_compiled
    def run(bases: Any, index: Any, sums: Any, squares: Any, rates: Any, numbers: Any) -> None:
        values_at, sums_at, grads_at = bases
        scale, eps, first, last = numbers
        share = scale * scale / width
        for i in range(first, last):
            ahead = index[min(i + _AHEAD, last - 1)]
            _prefetch_all(values_at + ahead * row_bytes, row_bytes)
            _prefetch_all(sums_at + ahead * views * 4, views * 4)
            row, rate = index[i], np.float32(rates[min(i, len(rates) - 1)] * scale)
            target, source = values_at + row * row_bytes, grads_at + i * row_bytes
            for v in range(views):
                total = sums[row, v] + np.float32(squares[i, v] * share)
                sums[row, v] = total
                factor = rate / (np.sqrt(total) + np.float32(eps))
                _move(width, target + v * width * 4, source + v * width * 4, factor)

    return run


@cache
def gather(views: int, width: int) -> Any:
    """`pool` of bags of one id without weights, in two thirds of its time; `low`: as there."""
    row_bytes = views * width * 4

    @_compiled
    def run(bases: Any, place: Any, low: bool, first: int, last: int) -> None:
        rows_at, out_at = bases
        for i in range(first, last):
            ahead = place[min(i + _AHEAD, len(place) - 1)]
            _prefetch_all(rows_at + ahead * row_bytes, row_bytes)
            for v in range(views):
                source, to = rows_at + place[i] * row_bytes + v * width * 4, v * len(place) + i
                if low:
                    _round(width, out_at + to * width * 2, source, np.float32(1))
                else:
                    _copy(width, out_at + to * width * 4, source, np.float32(1))

    return run


@cache
def pool(views: int, width: int) -> Any:
    """Sums a bag's rows, then its views go to their own places; `low` writes bfloat16's bits.

    `bases`: addresses of the rows, of the sums, and of a row's floats to work in.
    """
    view_bytes = width * 4
    row_bytes = views * view_bytes

    @_compiled
    def run(bases: Any, bags: Any, low: bool, first: int, last: int) -> None:
        rows_at, out_at, total_at = bases
        place, starts, weights = bags
        num_bags, one = len(starts), np.float32(1)
        for i in range(first, last):
            for at in range(0, row_bytes, view_bytes):
                _zero(width, total_at + at, total_at + at, one)
            stop = starts[i + 1] if i + 1 < num_bags else len(place)
            for j in range(starts[i], stop):
                ahead = place[min(j + _AHEAD, len(place) - 1)]
                _prefetch_all(rows_at + ahead * row_bytes, row_bytes)
                row_at = rows_at + place[j] * row_bytes
                weight = weights[j] if len(weights) else one
                for at in range(0, row_bytes, view_bytes):
                    _add_scaled(width, total_at + at, row_at + at, weight)
            for v in range(views):
                source, to = total_at + v * view_bytes, v * num_bags + i
                if low:
                    _round(width, out_at + to * width * 2, source, one)
                else:
                    _copy(width, out_at + to * view_bytes, source, one)

    return run


@cache
def sum_runs(views: int, width: int) -> Any:
    """Sums the gradients of each row's ids, run after run, and squares the sums.

    `bases`: addresses of the sums and of the gradients, bytes from one id's to the next and from a
    view to the next. `low`: gradients are bfloat16. `squares` may be empty.
    """
    view_bytes = width * 4
    row_bytes = views * view_bytes

    @_compiled
    def run(bases: Any, runs: Any, low: bool, squares: Any, first: int, last: int) -> None:
        out_at, grads_at, id_step, view_step = bases
        (order, starts), one = runs, np.float32(1)
        source_bytes = width * (2 if low else 4)
        for r in range(first, last):
            target, begin = out_at + r * row_bytes, starts[r]
            if low:
                for v in range(views):
                    _zero(width, target + v * view_bytes, target, one)
            for j in range(begin, starts[r + 1] if r + 1 < len(starts) else len(order)):
                ahead = grads_at + order[min(j + _AHEAD_L2, len(order) - 1)] * id_step
                here = grads_at + order[j] * id_step
                for v in range(views):
                    _prefetch_all_l2(ahead + v * view_step, source_bytes)
                    source, to = here + v * view_step, target + v * view_bytes
                    if low:
                        _add_scaled_low(width, to, source, one)
                    elif j == begin:
                        _copy(width, to, source, one)
                    else:
                        _add_scaled(width, to, source, one)
            if len(squares):
                for v in range(views):
                    squares[r, v] = _sum_of_squares(target + v * view_bytes, width)

    return run


@cache
def sum_bagged_runs(views: int, width: int) -> Any:
    """`sum_runs` of gradients of bags; `columns`: see `kernels.sum_bagged_runs`."""
    view_bytes = width * 4
    row_bytes = views * view_bytes

    @_compiled
    def run(out_at: int, runs: Any, columns: Any, squares: Any, first: int, last: int) -> None:
        order, starts = runs
        num_columns, one = np.uint64(len(columns)), np.float32(1)
        # j // C as a product: exact for j < 2^31, and a fifth of a division's time.
        shift = np.uint64(32)
        while num_columns > np.uint64(1) << (shift - np.uint64(32)):
            shift += np.uint64(1)
        inverse = ((np.uint64(1) << shift) + num_columns - np.uint64(1)) // num_columns
        for r in range(first, last):
            target, fresh = out_at + r * row_bytes, True
            stop = starts[r + 1] if r + 1 < len(starts) else len(order)
            for j in range(starts[r], stop):
                ahead = np.uint64(order[min(j + _AHEAD_L2, len(order) - 1)])
                b = (ahead * inverse) >> shift
                c = ahead - b * num_columns
                at = columns[c, 0] + np.int64(b) * columns[c, 1]
                for v in range(views):
                    _prefetch_all_l2(at + v * columns[c, 2], view_bytes)
                here = np.uint64(order[j])
                b = (here * inverse) >> shift
                c = here - b * num_columns
                if columns[c, 0] == 0:
                    continue
                at = columns[c, 0] + np.int64(b) * columns[c, 1]
                plain = columns[c, 3] == 0 and columns[c, 4] == 0
                if fresh and not plain:
                    for v in range(views):
                        _zero(width, target + v * view_bytes, target, one)
                weight = one
                if columns[c, 4] != 0:
                    weight = _float_at(columns[c, 4] + np.int64(b) * columns[c, 5])
                for v in range(views):
                    source, to = at + v * columns[c, 2], target + v * view_bytes
                    if columns[c, 3] != 0:
                        _add_scaled_low(width, to, source, weight)
                    elif fresh and plain:
                        _copy(width, to, source, one)
                    else:
                        _add_scaled(width, to, source, weight)
                fresh = False
            if fresh:
                for v in range(views):
                    _zero(width, target + v * view_bytes, target, one)
            if len(squares):
                for v in range(views):
                    squares[r, v] = _sum_of_squares(target + v * view_bytes, width)

    return run
