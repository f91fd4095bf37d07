"""From looked-up rows to a model's inputs: one vector of every view for each field, by pooling.

A field is a bag of ids (a categorical is a bag of one), so all fields of a group are one call a
view that sums weighted rows bag by bag; nothing of the size of all ids times the row width is made
in between, except for sequences that the model wants whole. Views lie one behind the other, as the
models' products read them.
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raymtl.batch import PAD, Batch, IdColumns, Inputs, Layout, Sequence
from raymtl.embedding.rows import Rows, Runs, compiled, sum_bags


def assemble(rows: Rows, batch: Batch, layout: Layout, num_views: int, width: int) -> Inputs:
    """Makes a model's inputs of a batch and its looked-up rows.

    Args:
        rows: from `lookup(batch.ids_BC, layout)`.
        num_views: V of the model; rows of one view are shown to all V.
        width: D.

    Returns:
        views_BVFD is a transposed view of (V, B, F, D) where all rows have one width, in the type
        of autocast where that is on. PAD gives exact zeros and gets no gradient; a mean over no ids
        is zero.
    """
    sequences = {c.feature: _whole(rows, batch, c, num_views, width) for c in layout.sequences}
    by_group = _fields_by_group(rows, layout.fields)
    pooled = [
        _pool(rows, number, batch, fields, layout).unflatten(1, (len(batch), len(fields)))
        for number, fields in by_group.items()
    ]
    shown = [p.expand(num_views, -1, -1, -1) for p in pooled]
    if not shown:
        views_VBFD = batch.numeric_BN.new_zeros(num_views, len(batch), 0, width)
    elif len(shown) == 1:
        views_VBFD = shown[0]
    else:
        views_VBFD = _interleave(shown, list(by_group.values()), layout.fields)
    return Inputs(views_VBFD.transpose(0, 1), batch.numeric_BN, sequences)


def _fields_by_group(rows: Rows, fields: Several[IdColumns]) -> dict[int, list[IdColumns]]:
    by_group: dict[int, list[IdColumns]] = {}
    for field in fields:
        by_group.setdefault(rows.group_of_table[field.table], []).append(field)
    return by_group


def _interleave(
    shown: list[Tensor], by_group: list[list[IdColumns]], fields: Several[IdColumns]
) -> Tensor:
    """(V, B, F, D) of each group's (V, B, F_g, D), fields in the layout's order."""
    vectors = {
        field.feature: vector
        for group, fields_of_group in zip(shown, by_group, strict=True)
        for field, vector in zip(fields_of_group, group.unbind(2), strict=True)
    }
    return torch.stack([vectors[field.feature] for field in fields], dim=2)


def _whole(rows: Rows, batch: Batch, field: IdColumns, num_views: int, width: int) -> Sequence:
    group = rows.groups[rows.group_of_table[field.table]]
    place_BS = rows.place_BC[:, field.start : field.stop]
    starts = torch.arange(place_BS.numel(), device=place_BS.device)
    pooled = _Pool.apply(group.leaf, group.views, _Bags(place_BS.flatten(), starts), None)
    values_BSVD = pooled.unflatten(1, (len(batch), field.width)).permute(1, 2, 0, 3)
    mask_BS = batch.ids_BC[:, field.start : field.stop] != PAD
    return Sequence(values_BSVD.expand(-1, -1, num_views, -1), mask_BS)


def _pool(rows: Rows, number: int, batch: Batch, fields: list[IdColumns], layout: Layout) -> Tensor:
    """(views, B * F_g, D) sums of the fields' weighted rows, fields of one row side by side."""
    group = rows.groups[number]
    columns = [i for c in fields for i in range(c.start, c.stop)]
    device = rows.place_BC.device
    every = len(columns) == layout.num_id_columns
    place_BK = rows.place_BC if every else rows.place_BC[:, columns]
    ends_F = torch.tensor([c.width for c in fields], device=device).cumsum(0)
    first_B = torch.arange(len(batch), device=device) * len(columns)
    starts_BF = first_B.unsqueeze(1) + ends_F.roll(1).index_fill(0, ends_F.new_zeros(1), 0)
    weights = _weights(batch, fields)
    known = group.runs if place_BK.numel() == len(group.runs.order_n) else None
    low = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if low else None
    bags = _Bags(place_BK.flatten(), starts_BF.flatten(), weights, known)
    return _Pool.apply(group.leaf, group.views, bags, dtype)


def _weights(batch: Batch, fields: list[IdColumns]) -> Tensor | None:
    """(B * K) weights of all ids of some fields, divided where the pooling is a mean."""
    if all(c.pooling != "mean" and c.weight_start is None for c in fields):
        return None
    parts = []
    for c in fields:
        given_BK = (batch.ids_BC[:, c.start : c.stop] != PAD).to(torch.float32)
        if c.weight_start is not None:
            given_BK *= batch.bag_weights[:, c.weight_start : c.weight_start + c.width]
        if c.pooling == "mean":
            total_B1 = given_BK.abs().sum(1, keepdim=True)
            given_BK /= total_B1.masked_fill_(total_B1 == 0, 1)
        parts.append(given_BK)
    return torch.cat(parts, dim=1).flatten()


@dataclass(frozen=True)
class _Bags:
    """Bag i sums the rows place[starts[i] : starts[i + 1]] of a leaf."""

    place_n: Tensor
    starts_m: Tensor
    weights_n: Tensor | None = None
    known: Runs | None = None
    """The runs of `place_n` if at hand."""

    @property
    def of_one(self) -> bool:
        """Whether every bag is one row, unweighted."""
        return self.weights_n is None and len(self.starts_m) == len(self.place_n)


class _Pool(torch.autograd.Function):
    """`sum_bags` of each view of a leaf, (views, m, D).

    Backward sums in a fixed order, several times quicker than torch's own.
    """

    @staticmethod
    def forward(
        ctx: Any, leaf: Tensor, views: int, bags: _Bags, dtype: torch.dtype | None
    ) -> Tensor:
        """`dtype` of the sums; null means the leaf's."""
        ctx.bags, ctx.num_rows = bags, len(leaf) - 1
        dtype = dtype or leaf.dtype
        if (kernels := compiled(leaf)) and _looped(leaf.dtype, dtype):
            arrays = bags.place_n, bags.starts_m, bags.weights_n
            return kernels.pool(leaf.detach(), views, arrays, dtype)
        rows_UVD = leaf.view(len(leaf), views, -1)
        if bags.of_one:
            rows_UVD = rows_UVD.to(dtype)  # rounded here, once a row
        rows_VUD = rows_UVD.transpose(0, 1).contiguous()
        summed = [sum_bags(r, bags.place_n, bags.starts_m, bags.weights_n) for r in rows_VUD]
        return torch.stack(summed).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        bags, grad_VmD = ctx.bags, grad_outputs[0].contiguous()
        if (kernels := compiled(grad_VmD)) and _looped(torch.float32, grad_VmD.dtype):
            arrays = bags.place_n, bags.starts_m, bags.weights_n
            return kernels.sum_views(grad_VmD, arrays, ctx.num_rows), None, None, None
        order_n, starts_U1 = _order(bags.place_n, bags.known, ctx.num_rows)
        bag_n = order_n
        if len(bags.starts_m) != len(bags.place_n):
            bag_n = torch.searchsorted(bags.starts_m, order_n, right=True) - 1
        weights = None if bags.weights_n is None else bags.weights_n[order_n]
        summed = [sum_bags(grad_mD, bag_n, starts_U1, weights) for grad_mD in grad_VmD.float()]
        return torch.stack(summed, dim=1).flatten(1), None, None, None


def _looped(rows: torch.dtype, pooled: torch.dtype) -> bool:
    """Whether the compiled loops read and write these types."""
    return rows == torch.float32 and pooled in (torch.float32, torch.bfloat16)


def _order(place_n: Tensor, known: Runs | None, num_rows: int) -> tuple[Tensor, Tensor]:
    """Ids ordered by their row, without PAD's, and where each row's begin; PAD's bag is empty."""
    if known is not None:
        starts, order_n = known.starts_U[:num_rows], known.order_n
        if len(known.starts_U) > num_rows:
            order_n = order_n[: int(known.starts_U[num_rows])]
        return order_n, torch.cat([starts, starts.new_tensor([len(order_n)])])
    sorted_n, order_n = torch.sort(place_n, stable=True)
    rows_U1 = torch.arange(num_rows + 1, device=place_n.device)
    starts_U1 = torch.searchsorted(sorted_n, rows_U1)
    return order_n[: int(starts_U1[-1])], starts_U1
