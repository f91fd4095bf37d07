"""Loops over table rows that numba compiles; kernels.py calls them with tensors.

Floats of a row go through explicit vectors: LLVM's own vectoriser joins several vectors at a time
and so leaves runs of 16 floats to single ones. Addresses are of memory that the caller keeps.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_AHEAD = 16
"""Rows asked for before they are needed: about as long as memory takes to answer."""
_LINE = 64
"""Bytes of a cache line."""
_DIGIT_BITS = 11
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_BYTE, _HALF, _WORD = ir.IntType(8), ir.IntType(16), ir.IntType(32)

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


def _generate_prefetch(typing: Any, address: Any) -> Any:
    """Asks for the cache line at an address; harmless for any address."""
    del typing

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _BYTE.as_pointer()
        function = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [pointer],
            ir.FunctionType(ir.VoidType(), [pointer, _WORD, _WORD, _WORD]),
        )
        # Of data, to be read, to stay in all caches.
        constants = [_WORD(0), _WORD(3), _WORD(1)]
        builder.call(function, [builder.inttoptr(arguments[0], pointer), *constants])
        return context.get_dummy_value()

    return types.void(types.uintp), generate


_prefetch: Any = intrinsic(_generate_prefetch)


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
_scale = _on_floats(lambda builder, old, new, factor: builder.fmul(factor, new))
_add_scaled = _on_floats(_fused)
_add_scaled_low = _on_floats(_fused_low, source=_HALF)
_move = _on_floats(lambda builder, old, new, factor: builder.fsub(old, builder.fmul(factor, new)))


@_compiled
def sort_runs(keys: Any, none: int, packed: Any, spare: Any, out: Any) -> int:
    """Sorts by digits, least first, keys and places packed in one word."""
    unique, order, starts, inverse = out
    num_keys, low, high = len(keys), none, -1
    for key in keys:
        if key != none:
            low, high = min(low, key), max(high, key)
    behind = max(high - low + 1, 0)
    bits = 1
    while behind >> bits:
        bits += 1
    if bits > 31:
        return -1
    passes = (bits + _DIGIT_BITS - 1) // _DIGIT_BITS
    digit = (bits + passes - 1) // passes
    mask = (1 << digit) - 1
    places = np.zeros((passes, mask + 1), np.int32)
    for i in range(num_keys):
        key = behind if keys[i] == none else keys[i] - low
        packed[i] = (key << 32) | i
        for p in range(passes):
            places[p, (key >> (p * digit)) & mask] += 1
    for p in range(passes):
        total = np.int32(0)
        for d in range(mask + 1):
            count = places[p, d]
            places[p, d] = total
            total += count
        shift = 32 + p * digit
        for i in range(num_keys):
            d = (packed[i] >> shift) & mask
            spare[places[p, d]] = packed[i]
            places[p, d] += 1
        packed, spare = spare, packed
    run, before = -1, -1
    for i in range(num_keys):
        key, at = packed[i] >> 32, packed[i] & 0xFFFFFFFF
        if key != before:
            run, before = run + 1, key
            unique[run] = none if key == behind else key + low
            starts[run] = i
        order[i] = at
        inverse[at] = run
    return run + 1


@_compiled
def keys(ids: Any, sizes: Any, owners: Any, out: Any, first: int, last: int) -> None:
    """Key of row k * P + bucket: the rows of its table in buckets before, k, and a shift."""
    table_C, rows_T, shift_WT = sizes
    bits, num_buckets, owner_P, none = owners
    for b in range(first, last):
        for c in range(len(table_C)):
            row = np.int64(ids[b, c])
            if row < 0:
                out[b, c] = none
                continue
            bucket, k = row % num_buckets, row // num_buckets
            if bits >= 0:
                bucket, k = row & (num_buckets - 1), row >> bits
            table = table_C[c]
            quotient, remainder = rows_T[0, table], rows_T[1, table]
            position = bucket * quotient + min(bucket, remainder) + k
            out[b, c] = position + shift_WT[owner_P[bucket], table]


@_compiled
def squares(grads: Any, base: int, num_views: int, out: Any, first: int, last: int) -> None:
    """Sums of squares of each view of rows first to last; `base`: address of the gradients."""
    row_width = grads.shape[1]
    width = row_width // num_views
    fours = width - width % 4
    for i in range(first, last):
        for v in range(num_views):
            at = v * width
            sums = (0.0, 0.0, 0.0, 0.0)
            for d in range(at, at + fours, 4):
                sums = _add_squares(base + (i * row_width + d) * 4, sums)
            a, b, c, e = sums
            for d in range(at + fours, at + width):
                a += np.float64(grads[i, d]) * np.float64(grads[i, d])
            out[i, v] = (a + b) + (c + e)


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
            for line in range(0, row_bytes, _LINE):
                _prefetch(values_at + ahead * row_bytes + line)
            _prefetch(sums_at + ahead * views * 4)
            row, rate = index[i], np.float32(rates[min(i, len(rates) - 1)] * scale)
            target, source = values_at + row * row_bytes, grads_at + i * row_bytes
            for v in range(views):
                total = sums[row, v] + np.float32(squares[i, v] * share)
                sums[row, v] = total
                factor = rate / (np.sqrt(total) + np.float32(eps))
                _move(width, target + v * width * 4, source + v * width * 4, factor)

    return run


@cache
def pool(views: int, width: int) -> Any:
    """Sums a bag's rows, then its views go to their own places; `low` writes bfloat16's bits.

    `bases`: addresses of rows, of the sums, and of a row's floats to work in.
    """
    view_bytes = width * 4
    row_bytes = views * view_bytes

    @_compiled
    def run(bases: Any, bags: Any, low: bool, first: int, last: int) -> None:
        rows_at, out_at, total_at = bases
        place, starts, weights = bags
        num_bags, one = len(starts), np.float32(1)
        for i in range(first, last):
            start = starts[i]
            stop = starts[i + 1] if i + 1 < num_bags else len(place)
            source = total_at
            if stop == start:
                for at in range(0, row_bytes, view_bytes):
                    _zero(width, total_at + at, total_at + at, one)
            for j in range(start, stop):
                ahead = place[min(j + _AHEAD, len(place) - 1)]
                for line in range(0, row_bytes, _LINE):
                    _prefetch(rows_at + ahead * row_bytes + line)
                row_at = rows_at + place[j] * row_bytes
                weight = weights[j] if len(weights) else one
                if stop == start + 1 and not len(weights):
                    source = row_at
                elif j == start:
                    for at in range(0, row_bytes, view_bytes):
                        _scale(width, total_at + at, row_at + at, weight)
                else:
                    for at in range(0, row_bytes, view_bytes):
                        _add_scaled(width, total_at + at, row_at + at, weight)
            for v in range(views):
                if low:
                    target = out_at + (v * num_bags + i) * width * 2
                    _round(width, target, source + v * view_bytes, one)
                else:
                    target = out_at + (v * num_bags + i) * view_bytes
                    _copy(width, target, source + v * view_bytes, one)

    return run


@cache
def sum_views(views: int, width: int) -> Any:
    """Adds each bag's gradient to the rows it read, in the order of its places; PAD's to none.

    `bases`: addresses of the gradients and of the sums, which are zeros.
    """
    row_bytes = views * width * 4

    @_compiled
    def run(bases: Any, bags: Any, low: bool, first: int, last: int) -> None:
        grads_at, out_at = bases
        place, starts, weights = bags
        num_bags, one = len(starts), np.float32(1)
        for b in range(num_bags):
            stop = starts[b + 1] if b + 1 < num_bags else len(place)
            for j in range(starts[b], stop):
                ahead = place[min(j + _AHEAD, len(place) - 1)]
                for line in range(0, row_bytes, _LINE):
                    _prefetch(out_at + ahead * row_bytes + line)
                row = place[j]
                if row < first or row >= last:
                    continue
                weight = weights[j] if len(weights) else one
                for v in range(views):
                    target = out_at + row * row_bytes + v * width * 4
                    if low:
                        source = grads_at + (v * num_bags + b) * width * 2
                        _add_scaled_low(width, target, source, weight)
                    else:
                        source = grads_at + (v * num_bags + b) * width * 4
                        _add_scaled(width, target, source, weight)

    return run
