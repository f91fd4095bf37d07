"""From looked-up rows to a model's inputs: one vector of every view for each field, by pooling.

A field is a bag of ids (a categorical is a bag of one), so all fields of a group are one call a
view that sums weighted rows bag by bag; nothing of the size of all ids times the row width is made
in between, except for sequences that the model wants whole. Views lie one behind the other, as the
models' products read them.
"""

from collections.abc import Sequence as Several

import torch
from torch import Tensor

from raymtl.batch import PAD, Batch, IdColumns, Inputs, Layout, Sequence
from raymtl.embedding.pooling import pool
from raymtl.embedding.rows import Bags, GroupRows, Rows


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
        _pooled(rows.groups[number], batch, fields).unflatten(1, (len(batch), len(fields)))
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
    """Each id a bag of its own."""
    group = rows.groups[rows.group_of_table[field.table]]
    pooled = pool(group, Bags(_columns(group, [field]), (1,) * field.width))
    values_BSVD = pooled.unflatten(1, (len(batch), field.width)).permute(1, 2, 0, 3)
    mask_BS = batch.ids_BC[:, field.start : field.stop] != PAD
    return Sequence(values_BSVD.expand(-1, -1, num_views, -1), mask_BS)


def _pooled(group: GroupRows, batch: Batch, fields: list[IdColumns]) -> Tensor:
    """(views, B * F_g, D) sums of the fields' weighted rows, fields of one row side by side."""
    device = group.values.device
    low = torch.is_autocast_enabled(device.type)
    bags = Bags(_columns(group, fields), tuple(c.width for c in fields), _weights_BK(batch, fields))
    return pool(group, bags, torch.get_autocast_dtype(device.type) if low else None)


def _columns(group: GroupRows, fields: list[IdColumns]) -> tuple[int, ...]:
    """Of the group's columns those of some fields."""
    number = {column: i for i, column in enumerate(group.columns)}
    return tuple(number[i] for c in fields for i in range(c.start, c.stop))


def _weights_BK(batch: Batch, fields: list[IdColumns]) -> Tensor | None:
    """Weights of all ids of some fields, divided where the pooling is a mean."""
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
    return torch.cat(parts, dim=1)
