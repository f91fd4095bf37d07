"""Ordered columns (numbers, dates, times) as integers that order alike, and ranges of rows."""

import numpy as np
import pyarrow as pa

FIRST = np.iinfo(np.int64).min
"""Orders before every value."""


def is_ordered(t: pa.DataType) -> bool:
    """Whether values of a type can be put in order here: numbers, dates and times."""
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_temporal, pa.types.is_null)
    return any(kind(t) for kind in kinds) and not pa.types.is_interval(t)


def ordinals(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Integers that stand in the order of the values.

    Returns:
        int64 (n,), FIRST where missing; bool (n,), False where missing (null or NaN).
    """
    values = column.combine_chunks()
    known = values.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_null(values.type):
        return np.full(len(values), FIRST), known
    if pa.types.is_floating(values.type):
        numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        known = ~np.isnan(numbers)
        bits = (np.where(known, numbers, 0.0) + 0.0).view(np.int64)
        # Bits of negative floats rise as the numbers fall.
        found = np.where(bits < 0, bits ^ np.iinfo(np.int64).max, bits)
    else:
        if pa.types.is_temporal(values.type) and values.type.bit_width == 32:
            values = values.cast(pa.int32())
        found = values.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return np.where(known, found, FIRST), known


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each range, one range after the other; int64 (sum of lengths,)."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def firsts(changes: np.ndarray) -> np.ndarray:
    """The first place of each row's group, int64 (n,).

    Args:
        changes: bool (n,), where a group starts; True at 0.
    """
    starts = np.flatnonzero(changes)
    return np.repeat(starts, np.diff(starts, append=len(changes)))


def changes_of(*keys: np.ndarray) -> np.ndarray:
    """Bool (n,), True where any key differs from the row before, and at 0."""
    out = np.zeros(len(keys[0]), bool)
    out[:1] = True
    for key in keys:
        out[1:] |= key[1:] != key[:-1]
    return out
