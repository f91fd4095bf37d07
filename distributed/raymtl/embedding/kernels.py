"""Compiled loops over table rows on the CPU: sorting, pooling and its backward, Adagrad's update.

The plain torch operations in rows.py and optimizers.py are what they are tested against; they run
where numba is absent and on other devices. Every output row is written by one thread and its sums
run in one order, so results do not depend on the number of threads. numba keeps what it compiled
beside this file, or in the user's cache folder where that cannot be written.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor

_AHEAD = 16
"""Rows asked for before they are needed: about as long as memory takes to answer."""
_LEAST_ROWS = 2**16
"""Rows a thread is worth: torch's own threads keep their cores busy for a while after each call."""
_BLOCK_ROWS = 128
_LINE = 64
"""Bytes of a cache line."""
_DIGIT_BITS = 11

Bags = tuple[Tensor, Tensor, Tensor | None]
"""Places, where each bag's begin, and their float32 weights; the last bag goes to the end."""

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")
_contracted = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
"""Rounds a product and its sum once, as torch's embedding_bag does."""


def _generate_prefetch(typing: Any, address: Any) -> Any:
    """Asks for the cache line at an address; harmless for any address."""
    del typing

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        )
        # Of data, to be read, to stay in all caches.
        constants = [word(0), word(3), word(1)]
        builder.call(function, [builder.inttoptr(arguments[0], pointer), *constants])
        return context.get_dummy_value()

    return types.void(types.uintp), generate


_prefetch: Any = intrinsic(_generate_prefetch)


@_compiled
def _sort_runs(keys: Any, none: int, packed: Any, spare: Any, out: Any) -> int:
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
def _keys(ids: Any, sizes: Any, owners: Any, out: Any, first: int, last: int) -> None:
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
def _squares(grads: Any, num_views: int, out: Any, first: int, last: int) -> None:
    width = grads.shape[1] // num_views
    fours = width - width % 4
    for i in range(first, last):
        for v in range(num_views):
            at = v * width
            a = b = c = e = 0.0
            for d in range(at, at + fours, 4):
                a += np.float64(grads[i, d]) * np.float64(grads[i, d])
                b += np.float64(grads[i, d + 1]) * np.float64(grads[i, d + 1])
                c += np.float64(grads[i, d + 2]) * np.float64(grads[i, d + 2])
                e += np.float64(grads[i, d + 3]) * np.float64(grads[i, d + 3])
            for d in range(at + fours, at + width):
                a += np.float64(grads[i, d]) * np.float64(grads[i, d])
            out[i, v] = (a + b) + (c + e)


@_compiled
def _adagrad(
    rows: Any, bases: Any, index: Any, grads: Any, squares: Any, rates: Any, numbers: Any
) -> None:
    """In blocks, each in three passes of one kind of access: half the time of row by row."""
    values, sums = rows
    values_at, sums_at = bases
    scale, eps, first, last = numbers
    row_width, num_views = values.shape[1], sums.shape[1]
    width = row_width // num_views
    share = scale * scale / width
    factors = np.empty((_BLOCK_ROWS, num_views), np.float32)
    for start in range(first, last, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, last)
        for i in range(start, stop):
            _prefetch(sums_at + index[min(i + _AHEAD, last - 1)] * num_views * 4)
            row, rate = index[i], np.float32(rates[min(i, len(rates) - 1)] * scale)
            for v in range(num_views):
                total = sums[row, v] + np.float32(squares[i, v] * share)
                sums[row, v] = total
                factors[i - start, v] = rate / (np.sqrt(total) + np.float32(eps))
        for i in range(start, stop):
            for v in range(num_views):
                factor = factors[i - start, v]
                for d in range(v * width, (v + 1) * width):
                    grads[i, d] *= factor
        for i in range(start, stop):
            ahead = index[min(i + _AHEAD, last - 1)]
            for line in range(0, row_width * 4, _LINE):
                _prefetch(values_at + ahead * row_width * 4 + line)
            row = index[i]
            for d in range(row_width):
                values[row, d] -= grads[i, d]


@_contracted
def _pool_bags(rows: Any, base: int, bags: Any, low: bool, out: Any, first: int, last: int) -> None:
    """Sums a bag's rows, then its views go to their own places; `low` writes bfloat16's bits."""
    place, starts, weights = bags
    num_views, num_bags, width = out.shape
    row_width = num_views * width
    total = np.empty(row_width, np.float32)
    bits = total.view(np.uint32)
    for i in range(first, last):
        start = starts[i]
        stop = starts[i + 1] if i + 1 < num_bags else len(place)
        for j in range(start, stop):
            ahead = place[min(j + _AHEAD, len(place) - 1)]
            for line in range(0, row_width * 4, _LINE):
                _prefetch(base + ahead * row_width * 4 + line)
            row, weight = place[j], weights[j] if len(weights) else np.float32(1)
            if j == start:
                for d in range(row_width):
                    total[d] = weight * rows[row, d]
            else:
                for d in range(row_width):
                    total[d] += weight * rows[row, d]
        if start == stop:
            total[:] = 0
        for v in range(num_views):
            if low:  # to the nearest, ties to even
                for d in range(width):
                    word = bits[v * width + d]
                    up = (word + np.uint32(0x7FFF) + ((word >> 16) & np.uint32(1))) >> 16
                    nan = (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
                    out[v, i, d] = np.uint32(0x7FC0) if nan else up
            else:
                for d in range(width):
                    out[v, i, d] = total[v * width + d]


@_contracted
def _sum_views(
    grads: Any, bags: Any, num_rows: int, low: bool, target: Any, first: int, last: int
) -> None:
    """Adds each bag's gradient to the rows it read, in the order of its places; PAD's to none."""
    place, starts, weights = bags
    out, base = target
    num_views, num_bags, width = grads.shape
    row_width = num_views * width
    found = np.empty(width, np.float32)
    bits = found.view(np.uint32)
    out[first:last] = 0
    for b in range(num_bags):
        stop = starts[b + 1] if b + 1 < num_bags else len(place)
        for j in range(starts[b], stop):
            ahead = place[min(j + _AHEAD, len(place) - 1)]
            for line in range(0, row_width * 4, _LINE):
                _prefetch(base + ahead * row_width * 4 + line)
            row = place[j]
            if row < first or row >= min(last, num_rows):
                continue
            weight = weights[j] if len(weights) else np.float32(1)
            for v in range(num_views):
                if low:
                    for d in range(width):
                        bits[d] = np.uint32(grads[v, b, d]) << np.uint32(16)
                    for d in range(width):
                        out[row, v * width + d] += weight * found[d]
                else:
                    for d in range(width):
                        out[row, v * width + d] += weight * grads[v, b, d]


def find_runs(keys_n: Tensor, none: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Distinct keys ascending, `none` behind them; stable order, starts and inverse.

    Args:
        keys_n: int64.
        none: a key that sorts behind all others.

    Returns:
        Null where the keys span 2^31 or more.
    """
    n = len(keys_n)
    out = tuple(torch.empty(n, dtype=torch.int64) for _ in range(4))
    scratch = np.empty((2, n), np.int64)
    arrays = tuple(t.numpy() for t in out)
    found = _sort_runs(keys_n.numpy(), none, scratch[0], scratch[1], arrays)
    if found < 0:
        return None
    unique, order, starts, inverse = out
    return unique[:found], order, starts[:found], inverse


def pool(rows: Tensor, views: int, bags: Bags, dtype: torch.dtype) -> Tensor:
    """Sums rows bag by bag, views one behind the other: (views, m, D) of float32 or bfloat16.

    Args:
        rows: float32 (n, views * D).
    """
    starts = bags[1]
    out = torch.empty(views, len(starts), rows.shape[1] // views, dtype=dtype)
    low, target, source = dtype == torch.bfloat16, _words(out), rows.numpy()
    arrays, base = _arrays(bags), rows.data_ptr()
    _in_parts(len(starts), lambda a, b: _pool_bags(source, base, arrays, low, target, a, b))
    return out


def sum_views(grad_VmD: Tensor, bags: Bags, num_rows: int) -> Tensor:
    """The backward of `pool`: float32 (num_rows + 1, views * D), the last row zeros.

    Args:
        grad_VmD: contiguous float32 or bfloat16.
        num_rows: rows below it get their bags' gradients; PAD has this place.
    """
    views, _, width = grad_VmD.shape
    out = torch.empty(num_rows + 1, views * width)
    low, source, arrays = grad_VmD.dtype == torch.bfloat16, _words(grad_VmD), _arrays(bags)
    target = out.numpy(), out.data_ptr()

    def add(first: int, last: int) -> None:
        _sum_views(source, arrays, num_rows, low, target, first, last)

    _in_parts(len(out), add)
    return out


def _words(tensor: Tensor) -> Any:
    """As numpy; bfloat16, which it has not, by its bits."""
    low = tensor.dtype == torch.bfloat16
    return tensor.view(torch.uint16).numpy() if low else tensor.numpy()


def _arrays(bags: Bags) -> tuple[Any, Any, Any]:
    place, starts, weights = bags
    held = torch.empty(0) if weights is None else weights
    return place.numpy(), starts.numpy(), held.numpy()


def keys(ids_BC: Tensor, sizes: tuple[Tensor, ...], owners: tuple[int, Tensor, int]) -> Tensor:
    """Keys of ids as `GroupPlan.keys` has them, `none` for negative ids.

    Args:
        sizes: each column's table; per table, rows // P and rows % P; shifts by owner and table.
        owners: P; each bucket's owner; `none`.
    """
    num_buckets, owner_P, none = owners
    bits = num_buckets.bit_length() - 1 if num_buckets & (num_buckets - 1) == 0 else -1
    out = torch.empty(ids_BC.shape, dtype=torch.int64)
    ids, target = ids_BC.numpy(), out.numpy()
    arrays = tuple(t.numpy() for t in sizes)
    rest = (bits, num_buckets, owner_P.numpy(), none)
    _in_parts(len(out), lambda a, b: _keys(ids, arrays, rest, target, a, b))
    return out


def squares(grads: Tensor, num_views: int) -> Tensor:
    """float64 (n, views): sums of squares of each view of each row."""
    out = torch.empty(len(grads), num_views, dtype=torch.float64)
    source, target = grads.numpy(), out.numpy()
    _in_parts(len(out), lambda a, b: _squares(source, num_views, target, a, b))
    return out


def adagrad(
    rows: tuple[Tensor, Tensor],
    index_n: Tensor,
    grads: Tensor,
    squares_nV: Tensor,
    rates_n: Tensor,
    numbers: tuple[float, float],
) -> None:
    """Row-wise Adagrad of distinct rows, in place.

    Args:
        rows: values and sums of squares of the store.
        rates_n: float32 learning rate of each row, or of all in one.
        numbers: what gradients are multiplied with, and epsilon.
    """
    arrays = tuple(t.numpy() for t in rows)
    bases = tuple(t.data_ptr() for t in rows)
    index, grad_rows = index_n.numpy(), grads.numpy()
    scales = (squares_nV.numpy(), rates_n.numpy())

    def update(first: int, last: int) -> None:
        _adagrad(arrays, bases, index, grad_rows, *scales, (*numbers, first, last))

    _in_parts(len(index), update)


def _in_parts(num_rows: int, call: Callable[[int, int], None]) -> None:
    """Calls with contiguous parts of the rows, one for each of torch's threads."""
    threads = min(torch.get_num_threads(), max(1, num_rows // _LEAST_ROWS))
    cuts = [num_rows * i // threads for i in range(threads + 1)]
    others = [_pool().submit(call, a, b) for a, b in pairwise(cuts[1:])]
    call(0, cuts[1])
    for other in others:
        other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="rows")
