"""From looked-up rows to a model's inputs: one vector of every view for each field, by pooling.

A field is a bag of ids (a categorical is a bag of one), so all fields of a group are one call that
sums weighted rows bag by bag; nothing of the size of all ids times the row width is made in
between, except for sequences that the model wants whole.
"""

from collections.abc import Sequence as Several
from typing import Any

import torch
from torch import Tensor

from raymtl.batch import PAD, Batch, IdColumns, Inputs, Layout, Sequence
from raymtl.embedding.rows import Rows, Runs, sum_bags


def assemble(rows: Rows, batch: Batch, layout: Layout, num_views: int, width: int) -> Inputs:
    """Makes a model's inputs of a batch and its looked-up rows.

    Args:
        rows: from `lookup(batch.ids_BC, layout)`.
        num_views: V of the model; rows of one view are shown to all V.
        width: D.

    Returns:
        views_BVFD is a transposed view of (B, F, V, D) where all rows have one width. PAD gives
        exact zeros and gets no gradient; a mean over no ids is zero.
    """
    sequences = {c.feature: _whole(rows, batch, c, num_views, width) for c in layout.sequences}
    by_group = _fields_by_group(rows, layout.fields)
    pooled = [
        _pool(rows, number, batch, fields, layout).view(
            len(batch), len(fields), rows.groups[number].views, width
        )
        for number, fields in by_group.items()
    ]
    shown = [p.expand(-1, -1, num_views, -1) for p in pooled]
    if not shown:
        views_BVFD = batch.numeric_BN.new_zeros(len(batch), num_views, 0, width)
    elif len(shown) == 1:
        views_BVFD = shown[0].transpose(1, 2)
    else:
        views_BVFD = _interleave(shown, list(by_group.values()), layout.fields)
    return Inputs(views_BVFD, batch.numeric_BN, sequences)


def _fields_by_group(rows: Rows, fields: Several[IdColumns]) -> dict[int, list[IdColumns]]:
    by_group: dict[int, list[IdColumns]] = {}
    for field in fields:
        by_group.setdefault(rows.group_of_table[field.table], []).append(field)
    return by_group


def _interleave(
    shown: list[Tensor], by_group: list[list[IdColumns]], fields: Several[IdColumns]
) -> Tensor:
    """(B, V, F, D) of each group's (B, F_g, V, D), fields in the layout's order."""
    vectors = {
        field.feature: vector
        for group, fields_of_group in zip(shown, by_group, strict=True)
        for field, vector in zip(fields_of_group, group.unbind(1), strict=True)
    }
    return torch.stack([vectors[field.feature] for field in fields], dim=2)


def _whole(rows: Rows, batch: Batch, field: IdColumns, num_views: int, width: int) -> Sequence:
    group = rows.groups[rows.group_of_table[field.table]]
    place_BS = rows.place_BC[:, field.start : field.stop]
    starts = torch.arange(place_BS.numel(), device=place_BS.device)
    values = _Pool.apply(group.leaf, place_BS.flatten(), starts, None, None)
    values_BSVD = values.view(len(batch), field.width, group.views, width)
    mask_BS = batch.ids_BC[:, field.start : field.stop] != PAD
    return Sequence(values_BSVD.expand(-1, -1, num_views, -1), mask_BS)


def _pool(rows: Rows, number: int, batch: Batch, fields: list[IdColumns], layout: Layout) -> Tensor:
    """(B * F_g, views * D) sums of the fields' weighted rows, fields of one row side by side."""
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
    return _Pool.apply(group.leaf, place_BK.flatten(), starts_BF.flatten(), weights, known)


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


class _Pool(torch.autograd.Function):
    """`sum_bags` of a leaf; backward sums in a fixed order, several times quicker than torch's."""

    @staticmethod
    def forward(
        ctx: Any,
        leaf: Tensor,
        place_n: Tensor,
        starts_m: Tensor,
        weights_n: Tensor | None,
        known: Runs | None,
    ) -> Tensor:
        """`known`: the runs of `place_n` if at hand."""
        ctx.save_for_backward(place_n, starts_m, weights_n)
        ctx.known, ctx.num_rows = known, len(leaf) - 1
        return sum_bags(leaf, place_n, starts_m, weights_n)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        place_n, starts_m, weights_n = ctx.saved_tensors
        order_n, starts_U1 = _order(place_n, ctx.known, ctx.num_rows)
        bag_n = order_n
        if len(starts_m) != len(place_n):
            bag_n = torch.searchsorted(starts_m, order_n, right=True) - 1
        weights = None if weights_n is None else weights_n[order_n]
        gradient = sum_bags(grad_outputs[0].contiguous(), bag_n, starts_U1, weights)
        return gradient, None, None, None, None


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
