"""Batches of labels for tests."""

import numpy as np
import torch
from torch import Tensor

from raymtl.batch import Batch


def labelled(
    labels_BT: Tensor, mask_BT: Tensor | None = None, weight_B: Tensor | None = None
) -> Batch:
    """A batch of labels without features; a NaN is unobserved unless a mask is given."""
    observed = ~labels_BT.isnan() if mask_BT is None else mask_BT
    num_rows = len(labels_BT)
    weight = torch.ones(num_rows) if weight_B is None else weight_B
    return Batch(
        step=0,
        ids_BC=torch.empty(num_rows, 0, dtype=torch.int64),
        bag_weights=torch.empty(num_rows, 0),
        numeric_BN=torch.empty(num_rows, 0),
        labels_BT=labels_BT if mask_BT is not None else labels_BT.nan_to_num(0.0),
        mask_BT=observed,
        weight_B=weight,
        weight_BT=weight[:, None] * observed,
        group_B=torch.full((num_rows,), -1),
        file_B=np.zeros(num_rows, np.int32),
        row_B=np.arange(num_rows),
    )
