"""From ids and numbers to a model's inputs: rows looked up and pooled."""

import torch
import torch.nn.functional as F
from torch import Tensor

from raymtl.scorer.errors import require
from raymtl.scorer.features import Sizes

PAD = -1
"""Row number of `no id`."""


class Embedding:
    """The tables, and what the model is given of their rows."""

    def __init__(self, sizes: Sizes, tables: dict[str, Tensor]):
        self.sizes, self.tables = sizes, {}
        for name, rows in sizes.rows.items():
            table, shape = tables[name], (rows, sizes.views[name] * sizes.width)
            fits = table.dtype == torch.float32 and table.shape == shape
            require(fits, f"table {name} of shape {tuple(table.shape)}")
            self.tables[name] = table

    def inputs(self, ids_BC: Tensor, weights: Tensor, numeric_BN: Tensor) -> list[Tensor]:
        """What the program takes, in its order.

        Returns:
            Vectors of the fields (B, V, F, D), numbers (B, N), then of each whole sequence its
            values (B, S, V, D) and mask (B, S).
        """
        fields, sequences = [], []
        for c in self.sizes.columns:
            ids_BK = ids_BC[:, c.start : c.start + c.width]
            mask_BK = ids_BK != PAD
            if c.pooling == "none":
                values = F.embedding(ids_BK.clamp(min=0), self.tables[c.table])
                values = values * mask_BK.unsqueeze(-1)
                sequences += [self._viewed(values, c.table), mask_BK]
                continue
            share_BK = mask_BK.float()
            if c.weight_start is not None:
                share_BK *= weights[:, c.weight_start : c.weight_start + c.width]
            if c.pooling == "mean":
                total_B1 = share_BK.abs().sum(1, keepdim=True)
                share_BK /= total_B1.masked_fill(total_B1 == 0, 1)
            pooled = F.embedding_bag(
                ids_BK.clamp(min=0),
                self.tables[c.table],
                mode="sum",
                per_sample_weights=share_BK,
            )
            fields.append(self._viewed(pooled, c.table))
        empty = numeric_BN.new_zeros(len(ids_BC), self.sizes.num_views, 0, self.sizes.width)
        return [torch.stack(fields, dim=2) if fields else empty, numeric_BN, *sequences]

    def _viewed(self, rows: Tensor, table: str) -> Tensor:
        """(.., V, D) of (.., views * D); one view is shown to all."""
        values = rows.unflatten(-1, (self.sizes.views[table], self.sizes.width))
        return values.expand(*values.shape[:-2], self.sizes.num_views, -1)
