"""Work on table rows on the CPU: sorting, pooling and its backward, Adagrad's update.

The plain torch operations in rows.py and optimizers.py are what this is tested against; they run
where numba is absent and on other devices. Every output row is written by one thread and its sums
run in one order, so results do not depend on the number of threads. numba keeps what it compiled
beside their source, or in the user's cache folder where that cannot be written.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymtl.embedding import key_loops, row_loops

_LEAST_ROWS = 2**16
"""Rows a thread is worth: torch's own threads keep their cores busy for a while after each call."""

Places = tuple[Tensor, Tensor, Tensor | None]
"""Rows by place, where each bag's begin, and float32 weights; the last bag goes to the end."""


def extremes(ids_BC: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest id of each column, of one row or more."""
    lowest, highest = ids_BC[0].clone(), ids_BC[0].clone()
    key_loops.extremes(ids_BC.numpy(), lowest.numpy(), highest.numpy())
    return lowest, highest


def find_runs(keys_n: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Distinct keys ascending, then int32: the keys' stable order and where each run begins.

    Args:
        keys_n: int64, fewer than 2^31.

    Returns:
        Null where the keys span 2^31 or more.
    """
    n = len(keys_n)
    unique = torch.empty(n, dtype=torch.int64)
    order, starts = torch.empty(n, dtype=torch.int32), torch.empty(n + 1, dtype=torch.int32)
    scratch = np.empty((2, n), np.uint64)
    arrays = tuple(t.numpy() for t in (unique, order, starts))
    found = key_loops.sort_runs(keys_n.numpy(), scratch[0], scratch[1], arrays)
    return None if found < 0 else (unique[:found], order, starts[:found])


def numbers(runs: tuple[Tensor, Tensor], num_keys: int) -> Tensor:
    """int64 (num_keys,): the run of each key, as many as there are runs where it is in none.

    Args:
        runs: keys by run; where each run's begin.
    """
    order, starts = runs
    out = torch.full((num_keys,), len(starts), dtype=torch.int64)
    key_loops.numbers(order.numpy(), starts.numpy(), out.numpy())
    return out


def gather(values: Tensor, views: int, place_n: Tensor, out: Tensor) -> None:
    """`pool` of bags of one row without weights, into (views, n, D) of float32 or bfloat16."""
    low = out.dtype == torch.bfloat16
    copy = row_loops.gather(views, values.shape[1] // views)
    bases, places = (values.data_ptr(), out.data_ptr()), place_n.numpy()
    _in_parts(len(places), lambda a, b: copy(bases, places, low, a, b))


def pool(values: Tensor, views: int, places: Places, dtype: torch.dtype) -> Tensor:
    """Sums rows bag by bag, views one behind the other: (views, m, D) of float32 or bfloat16.

    Args:
        values: float32 (n, views * D), contiguous.
    """
    place, starts, weights = places
    width, low = values.shape[1] // views, dtype == torch.bfloat16
    out = torch.empty(views, len(starts), width, dtype=dtype)
    held = torch.empty(0) if weights is None else weights
    arrays, sum_bags = tuple(t.numpy() for t in (place, starts, held)), row_loops.pool(views, width)

    def sum_(first: int, last: int) -> None:
        total = torch.empty(values.shape[1])
        bases = values.data_ptr(), out.data_ptr(), total.data_ptr()
        sum_bags(bases, arrays, low, first, last)

    _in_parts(len(starts), sum_)
    return out


def sum_runs(
    grads_VnD: Tensor,
    runs: tuple[Tensor, Tensor],
    with_squares: bool,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums the gradients of each row's ids, in the order of the ids.

    Args:
        grads_VnD: float32 or bfloat16 of each id, contiguous in D.
        runs: ids by row; where each row's begin.
        out: contiguous, for the sums; null for a new tensor.

    Returns:
        float32 (U, views * D), and float64 (U, views), empty without squares: of each view's sum.
    """
    views, _, width = grads_VnD.shape
    low, size = grads_VnD.dtype == torch.bfloat16, grads_VnD.element_size()
    steps = grads_VnD.stride(1) * size, grads_VnD.stride(0) * size
    sum_ = row_loops.sum_runs(views, width)

    def fill(base: int, arrays: Any, squares: np.ndarray, first: int, last: int) -> None:
        sum_((base, grads_VnD.data_ptr(), *steps), arrays, low, squares, first, last)

    return _summed(runs, (views, width), with_squares, fill, out)


def sum_bagged_runs(
    columns: np.ndarray,
    runs: tuple[Tensor, Tensor],
    shape_VD: tuple[int, int],
    with_squares: bool,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`sum_runs` where several ids share a gradient, have weights, or have none.

    Args:
        columns: int64 (C, 6) of each column: address of its first gradient, 0 for none; bytes from
            one b to the next, and from a view to the next; 1 for bfloat16, 0 for float32; address
            of its first weight, 0 for none, and bytes to the next. The caller keeps that memory.
        runs: ids as place b * C + c in (B, C), below 2^31.
        out: as `sum_runs` has it.
    """
    sum_ = row_loops.sum_bagged_runs(*shape_VD)

    def fill(base: int, arrays: Any, squares: np.ndarray, first: int, last: int) -> None:
        sum_(base, arrays, columns, squares, first, last)

    return _summed(runs, shape_VD, with_squares, fill, out)


def _summed(
    runs: tuple[Tensor, Tensor],
    shape_VD: tuple[int, int],
    with_squares: bool,
    fill: Callable[[int, Any, np.ndarray, int, int], None],
    out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Sums by row, and their squares, that `fill` writes from row `first` to `last`."""
    (views, width), num_rows = shape_VD, len(runs[1])
    out = torch.empty(num_rows, views * width) if out is None else out
    squares = torch.empty(num_rows if with_squares else 0, views, dtype=torch.float64)
    arrays, target, base = tuple(t.numpy() for t in runs), squares.numpy(), out.data_ptr()
    _in_parts(num_rows, lambda a, b: fill(base, arrays, target, a, b))
    return out, squares


def keys(ids_BC: Tensor, sizes: tuple[Tensor, ...], owners: tuple[int, Tensor, int]) -> Tensor:
    """Keys of ids as `GroupPlan.keys` has them, `pad` for negative ids.

    Args:
        sizes: per column, its table's rows // P and rows % P, and the shift of each owner.
        owners: P; each bucket's owner; `pad`.
    """
    num_buckets, owner_P, pad = owners
    bits = num_buckets.bit_length() - 1 if num_buckets & (num_buckets - 1) == 0 else -1
    out = torch.empty(ids_BC.shape, dtype=torch.int64)
    ids, target = ids_BC.numpy(), out.numpy()
    arrays = tuple(t.numpy() for t in sizes)
    if bits >= 0 and len(sizes[2]) == 1:
        _in_parts(
            len(out), lambda a, b: key_loops.keys_of_one(ids, arrays, (bits, pad), target, a, b)
        )
    else:
        rest = (bits, num_buckets, owner_P.numpy(), pad)
        _in_parts(len(out), lambda a, b: key_loops.keys(ids, arrays, rest, target, a, b))
    return out


def squares(grads: Tensor, num_views: int) -> Tensor:
    """float64 (n, views): sums of squares of each view of each row."""
    grads = grads.contiguous()
    out = torch.empty(len(grads), num_views, dtype=torch.float64)
    base, width, target = grads.data_ptr(), grads.shape[1] // num_views, out.numpy()
    _in_parts(len(out), lambda a, b: row_loops.squares(base, width, target, a, b))
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
    update = row_loops.adagrad(sums.shape[1], grads.shape[1] // sums.shape[1])

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
