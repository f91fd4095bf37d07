"""Looked-up rows summed bag by bag, and the gradients of the sums summed row by row.

Rows are read where they lie, on one rank alone in the tables themselves. Autograd takes one number
for all of them: backward leaves each pooled gradient with its group, and `row_gradients` sums them
into the rows at once, in the order of the batch.
"""

from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymtl.embedding.rows import Bags, GroupRows, Runs, compiled, squares, sum_bags


def pool(group: GroupRows, bags: Bags, dtype: torch.dtype | None = None) -> Tensor:
    """Weighted sums of a group's rows: (views, B * F, D), the bags of a row of the batch together.

    Args:
        dtype: of the sums; null means float32.
    """
    made = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    return _Pool.apply(group.anchor, group, bags, made).to(dtype or made)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, group: GroupRows, bags: Bags, dtype: torch.dtype
    ) -> Tensor:
        del anchor
        ctx.group, ctx.bags = group, bags
        kernels = compiled(group.values)
        if kernels and _each_alone(bags):
            places_n = _chosen(group.place_BC, bags).flatten()
            width = group.values.shape[1] // group.views
            out = torch.empty(group.views, len(places_n), width, dtype=dtype)
            kernels.gather(group.values, group.views, places_n, out)
            return out
        places = _places(group.place_BC, bags)
        if kernels:
            return kernels.pool(group.values, group.views, places, dtype)
        summed = sum_bags(group.values, *places).unflatten(1, (group.views, -1))
        return summed.transpose(0, 1).to(dtype).contiguous()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None, None, None]:
        ctx.group.pooled.append((grad_outputs[0].contiguous(), ctx.bags))
        return None, None, None, None


def row_gradients(group: GroupRows, out: Tensor | None = None) -> Tensor:
    """Sums, and forgets, what backward brought: float32 (U, views * D).

    Args:
        out: contiguous, for the sums; null for a new tensor.
    """
    return _summed(group, with_squares=False, out=out)[0]


def row_gradients_and_squares(group: GroupRows) -> tuple[Tensor, Tensor]:
    """The same, and the sums of squares of each view: float64 (U, views)."""
    return _summed(group, with_squares=True)


def sum_runs(grads: Tensor, runs: Runs, views: int) -> tuple[Tensor, Tensor]:
    """Sums gradients (n, views * D) run by run, and the sums of squares of each view of a sum."""
    kernels = compiled(grads)
    if not kernels:
        summed = sum_bags(grads, runs.order_n, runs.starts_U)
        return summed, squares(summed, views)
    grads_VnD = grads.contiguous().unflatten(1, (views, -1)).transpose(0, 1)
    return kernels.sum_runs(grads_VnD, (runs.order_n, runs.starts_U), with_squares=True)


def _summed(
    group: GroupRows, with_squares: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    pooled, group.pooled = group.pooled, []
    width, num_columns = group.values.shape[1] // group.views, len(group.columns)
    if kernels := compiled(group.values):
        runs = group.runs.order_n, group.runs.starts_U
        if len(pooled) == 1 and _each_alone(bags := pooled[0][1]) and _are_all(bags, num_columns):
            return kernels.sum_runs(pooled[0][0], runs, with_squares, out)
        columns = _sources(group, pooled)
        shape_VD = group.views, width
        return kernels.sum_bagged_runs(columns, runs, shape_VD, with_squares, out)
    if out is None:
        out = group.values.new_empty(group.num_rows, group.values.shape[1])
    grads = out.zero_()
    for grad_VmD, bags in pooled:
        grads += _summed_plainly(group, grad_VmD, bags)
    return grads, squares(grads, group.views) if with_squares else grads.new_empty(0)


def _each_alone(bags: Bags) -> bool:
    """Whether each is of one id, without a weight."""
    return bags.weights_BK is None and bags.sizes == (1,) * len(bags.columns)


def _are_all(bags: Bags, num_columns: int) -> bool:
    """Whether their columns are all of the group's, as they stand."""
    return bags.columns == tuple(range(num_columns))


def _summed_plainly(group: GroupRows, grad_VmD: Tensor, bags: Bags) -> Tensor:
    number_BC = group.runs.numbers(group.place_BC.numel()).view_as(group.place_BC)
    number_n, starts_m, weights_n = _places(number_BC, bags)
    sorted_n, order_n = torch.sort(number_n, stable=True)
    rows_U1 = torch.arange(group.num_rows + 1, device=sorted_n.device)
    starts_U1 = torch.searchsorted(sorted_n, rows_U1)
    order_n = order_n[: int(starts_U1[-1])]
    bag_n = torch.searchsorted(starts_m, order_n, right=True) - 1
    weights_n = None if weights_n is None else weights_n[order_n]
    summed = [sum_bags(grad, bag_n, starts_U1[:-1], weights_n) for grad in grad_VmD.float()]
    return torch.stack(summed, dim=1).flatten(1)


def _places(place_BC: Tensor, bags: Bags) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of the columns that are pooled: (B * K) places, where bags begin among them, weights."""
    place_BK = _chosen(place_BC, bags)
    starts_m = _starts(len(place_BK), bags.sizes, place_BK.device)
    weights_n = None if bags.weights_BK is None else bags.weights_BK.flatten()
    return place_BK.flatten(), starts_m, weights_n


def _chosen(place_BC: Tensor, bags: Bags) -> Tensor:
    """Of the columns that are pooled: (B, K)."""
    return place_BC if _are_all(bags, place_BC.shape[1]) else place_BC[:, bags.columns]


def _sources(group: GroupRows, pooled: list[tuple[Tensor, Bags]]) -> np.ndarray:
    """int64 (C, 6), what `kernels.sum_bagged_runs` takes; of addresses that `pooled` keeps."""
    sources = np.zeros((len(group.columns), 6), np.int64)
    for grad_VmD, bags in pooled:
        columns, num_bags = list(bags.columns), len(bags.sizes)
        assert not sources[columns, 0].any(), "rows are pooled once between two collects"
        bag_bytes = grad_VmD.shape[2] * grad_VmD.element_size()
        bag_K = np.repeat(np.arange(num_bags), bags.sizes)
        sources[columns, 0] = grad_VmD.data_ptr() + bag_K * bag_bytes
        sources[columns, 1] = num_bags * bag_bytes
        sources[columns, 2] = grad_VmD.shape[1] * bag_bytes
        sources[columns, 3] = grad_VmD.dtype == torch.bfloat16
        if bags.weights_BK is not None:
            sources[columns, 4] = bags.weights_BK.data_ptr() + np.arange(len(columns)) * 4
            sources[columns, 5] = len(columns) * 4
    return sources


@lru_cache(maxsize=16)
def _starts(num_rows: int, sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Where the bags of a batch's rows begin among their ids."""
    first_F = torch.tensor([0, *accumulate(sizes)][: len(sizes)], dtype=torch.int64)
    first_B = torch.arange(num_rows) * sum(sizes)
    return (first_B.unsqueeze(1) + first_F).flatten().to(device)
