"""Loops over ids and keys that numba compiles; kernels.py calls them with tensors."""

from typing import Any

import numba
import numpy as np

_DIGIT_BITS = 13
_PLACE_BITS, _PLACES = np.uint64(32), np.uint64(2**32 - 1)

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@_compiled
def extremes(ids: Any, lowest: Any, highest: Any) -> None:
    """Takes what is least and greatest of each column."""
    for b in range(len(ids)):
        for c in range(len(lowest)):
            lowest[c] = min(lowest[c], ids[b, c])
            highest[c] = max(highest[c], ids[b, c])


@_compiled
def sort_runs(keys: Any, packed: Any, spare: Any, out: Any) -> int:
    """Sorts by digits, least first, keys and places packed in one word; room for U + 1 starts."""
    unique, order, starts = out
    num_keys = len(keys)
    if num_keys == 0:
        return 0
    low, high = keys[0], keys[0]
    for key in keys:
        low, high = min(low, key), max(high, key)
    bits = 1
    while (high - low) >> bits:
        bits += 1
    if bits > 31:
        return -1
    passes = (bits + _DIGIT_BITS - 1) // _DIGIT_BITS
    digit = np.uint64((bits + passes - 1) // passes)
    mask = (np.uint64(1) << digit) - np.uint64(1)
    for i in range(num_keys):
        packed[i] = (np.uint64(keys[i] - low) << _PLACE_BITS) | np.uint64(i)
    place = np.empty(1 << digit, np.int32)
    for p in range(passes):
        shift = _PLACE_BITS + np.uint64(p) * digit
        place[:] = 0
        for i in range(num_keys):
            place[(packed[i] >> shift) & mask] += 1
        total = np.int32(0)
        for d in range(len(place)):
            place[d], total = total, total + place[d]
        for i in range(num_keys):
            d = (packed[i] >> shift) & mask
            spare[place[d]] = packed[i]
            place[d] += 1
        packed, spare = spare, packed
    run, before = np.uint64(0), packed[0] >> _PLACE_BITS
    starts[0] = 0
    for i in range(num_keys):
        key = packed[i] >> _PLACE_BITS
        # Without a branch, for which of them is a new one cannot be foreseen.
        run += np.uint64(key != before)
        before = key
        unique[run] = np.int64(key) + low
        order[i] = np.int32(packed[i] & _PLACES)
        starts[run + np.uint64(1)] = i + 1
    return int(run) + 1


@_compiled
def numbers(order: Any, starts: Any, out: Any) -> None:
    """The run of each key; what is in none stays as it is."""
    for run in range(len(starts)):
        last = starts[run + 1] if run + 1 < len(starts) else len(order)
        for i in range(starts[run], last):
            out[order[i]] = run


@_compiled
def keys(ids: Any, sizes: Any, owners: Any, out: Any, first: int, last: int) -> None:
    """Key of row k * P + bucket: the rows of its table in buckets before, k, and a shift."""
    quotient_C, remainder_C, shift_WC = sizes
    bits, num_buckets, owner_P, pad = owners
    for b in range(first, last):
        for c in range(len(quotient_C)):
            row = np.int64(ids[b, c])
            if row < 0:
                out[b, c] = pad
                continue
            bucket, k = row % num_buckets, row // num_buckets
            if bits >= 0:
                bucket, k = row & (num_buckets - 1), row >> bits
            position = bucket * quotient_C[c] + min(bucket, remainder_C[c]) + k
            out[b, c] = position + shift_WC[owner_P[bucket], c]


@_compiled
def keys_of_one(ids: Any, sizes: Any, buckets: Any, out: Any, first: int, last: int) -> None:
    """`keys` of one owner and 2^bits buckets, which LLVM makes vectors of."""
    quotient_C, remainder_C, shift_WC = sizes
    bits, pad = buckets
    mask = (1 << bits) - 1
    for b in range(first, last):
        for c in range(len(quotient_C)):
            row = np.int64(ids[b, c])
            bucket = row & mask
            key = bucket * quotient_C[c] + min(bucket, remainder_C[c]) + (row >> bits)
            out[b, c] = pad if row < 0 else key + shift_WC[0, c]
