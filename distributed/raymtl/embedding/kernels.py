"""Work on table rows on the CPU: sorting, pooling and its backward, Adagrad's update.

The plain torch operations in rows.py and optimizers.py are what this is tested against; they run
where numba is absent and on other devices. Every output row is written by one thread and its sums
run in one order, so results do not depend on the number of threads. numba keeps what it compiled
beside loops.py, or in the user's cache folder where that cannot be written.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymtl.embedding import loops

_LEAST_ROWS = 2**16
"""Rows a thread is worth: torch's own threads keep their cores busy for a while after each call."""

Bags = tuple[Tensor, Tensor, Tensor | None]
"""Places, where each bag's begin, and their float32 weights; the last bag goes to the end."""


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
    found = loops.sort_runs(keys_n.numpy(), none, scratch[0], scratch[1], arrays)
    if found < 0:
        return None
    unique, order, starts, inverse = out
    return unique[:found], order, starts[:found], inverse


def pool(rows: Tensor, views: int, bags: Bags, dtype: torch.dtype) -> Tensor:
    """Sums rows bag by bag, views one behind the other: (views, m, D) of float32 or bfloat16.

    Args:
        rows: float32 (n, views * D).
    """
    rows = rows.contiguous()
    starts, width = bags[1], rows.shape[1] // views
    out = torch.empty(views, len(starts), width, dtype=dtype)
    arrays, low, sum_bags = _arrays(bags), dtype == torch.bfloat16, loops.pool(views, width)

    def sum_(first: int, last: int) -> None:
        total = torch.empty(rows.shape[1])
        bases = rows.data_ptr(), out.data_ptr(), total.data_ptr()
        sum_bags(bases, arrays, low, first, last)

    _in_parts(len(starts), sum_)
    return out


def sum_views(grad_VmD: Tensor, bags: Bags, num_rows: int) -> Tensor:
    """The backward of `pool`: float32 (num_rows + 1, views * D), the last row zeros.

    Args:
        grad_VmD: float32 or bfloat16.
        num_rows: rows below it get their bags' gradients; PAD has this place.
    """
    grad_VmD, (views, _, width) = grad_VmD.contiguous(), grad_VmD.shape
    out = torch.empty(num_rows + 1, views * width)
    arrays, bases = _arrays(bags), (grad_VmD.data_ptr(), out.data_ptr())
    low, add_bags = grad_VmD.dtype == torch.bfloat16, loops.sum_views(views, width)

    def add(first: int, last: int) -> None:
        out[first:last].zero_()
        add_bags(bases, arrays, low, first, min(last, num_rows))

    _in_parts(len(out), add)
    return out


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
    _in_parts(len(out), lambda a, b: loops.keys(ids, arrays, rest, target, a, b))
    return out


def squares(grads: Tensor, num_views: int) -> Tensor:
    """float64 (n, views): sums of squares of each view of each row."""
    grads = grads.contiguous()
    out = torch.empty(len(grads), num_views, dtype=torch.float64)
    source, base, target = grads.numpy(), grads.data_ptr(), out.numpy()
    _in_parts(len(out), lambda a, b: loops.squares(source, base, num_views, target, a, b))
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
    grads = grads.contiguous()
    bases = tuple(t.data_ptr() for t in (*rows, grads))
    index, sums = index_n.numpy(), rows[1].numpy()
    scales = squares_nV.numpy(), rates_n.numpy()
    update = loops.adagrad(sums.shape[1], grads.shape[1] // sums.shape[1])

    def move(first: int, last: int) -> None:
        update(bases, index, sums, *scales, (*numbers, first, last))

    _in_parts(len(index), move)


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
