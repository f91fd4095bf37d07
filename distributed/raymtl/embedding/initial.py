"""Initial values of table rows: normal numbers from a counter-based hash, no generator state.

The value at (row, view, d) of a table depends on (seed, table name, row, view, d) and on nothing
else: not on ranks, buckets, chunks, nor on how many rows or views the table has. The shared view,
which stands last in a row, is numbered 0 here and task t's view t + 1: so it starts alike in models
with and without task-specific embeddings, and a new task leaves the others' values alone.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from raymtl.embedding.placement import row_at

if TYPE_CHECKING:
    from raymtl.embedding.tables import TableSpec

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1
_CHUNK_VALUES = 1 << 16
"""Values made at a time: temporaries of about 0.5 MB stay in the cache."""


def fill_initial(
    out: Tensor, spec: "TableSpec", first: int, num_buckets: int, seed: int, std: float
) -> None:
    """Overwrites `out` with the initial values of the rows at positions first, first + 1, ...

    Args:
        out: float32 (n, V*D).
        num_buckets: P that positions are counted with; 1 counts rows in their own order.
    """
    if std == 0:
        out.zero_()
        return
    step = max(1, _CHUNK_VALUES // spec.width_floats)
    for start in range(0, len(out), step):
        part = out[start : start + step]
        positions = torch.arange(first + start, first + start + len(part))
        row_n = row_at(spec.rows, num_buckets, positions).numpy()
        values = initial_rows(spec.name, row_n, (spec.views, spec.width), seed, std)
        part.copy_(torch.from_numpy(values))


def initial_rows(
    name: str, row_n: np.ndarray, shape: tuple[int, int], seed: int, std: float
) -> np.ndarray:
    """Normal(0, std) values of rows of a table.

    Args:
        name: the table's.
        row_n: int64 row numbers.
        shape: (V, D).

    Returns:
        float32 (n, V*D); Box-Muller in float64, one hash for each pair of neighbours.
    """
    num_views, width = shape
    num_pairs = (width + 1) // 2
    view_v = (np.arange(num_views, dtype=np.uint64) + np.uint64(1)) % np.uint64(num_views)
    pair_p = np.arange(num_pairs, dtype=np.uint64)
    counter_vp = (view_v[:, None] << np.uint64(32)) | pair_p
    row_hash_n = _mix(_stream(seed, name) + _GOLDEN * (row_n.astype(np.uint64) + np.uint64(1)))
    bits = _mix(row_hash_n[:, None, None] + _GOLDEN * (counter_vp + np.uint64(1)))
    radius = np.sqrt(-2.0 * np.log(((bits >> np.uint64(32)) + 0.5) * 2.0**-32)) * std
    angle = (bits & np.uint64(0xFFFFFFFF)) * (2.0**-32 * 2.0 * np.pi)
    values = np.empty((len(row_n), num_views, num_pairs, 2), dtype=np.float32)
    values[..., 0] = radius * np.cos(angle)
    values[..., 1] = radius * np.sin(angle)
    pairs = values.reshape(len(row_n), num_views, 2 * num_pairs)
    return pairs[:, :, :width].reshape(len(row_n), num_views * width)


def _stream(seed: int, name: str) -> np.ndarray:
    """Start of a table's counter, as an array so that overflow wraps without a warning."""
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return _mix(_mix(np.array([key], dtype=np.uint64)) ^ np.array([seed & _MASK], dtype=np.uint64))


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
