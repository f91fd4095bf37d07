"""Masked losses per task: sums here, divided by denominators that the trainer sums over ranks.

DESIGN: gradients are summed over ranks, never averaged, so that uneven lanes, masks and padding
change nothing.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from raymtl.batch import Batch

Denominator = Literal["batch", "observed"]


def task_losses(logits_BT: Tensor, batch: Batch, kinds: Sequence[str]) -> Tensor:
    """Sums of weight times loss over this rank's observed rows.

    Binary tasks: cross entropy of the logit; regression: squared error. What stands in a row that
    is unobserved or has weight 0 (label or logit, even NaN) adds nothing and gets no gradient.

    Args:
        kinds: `binary` or `regression` per task.

    Returns:
        loss_T of the logits' type.
    """
    counted = batch.mask_BT & (batch.weight_BT > 0)
    zero = logits_BT.new_zeros(())
    logits = torch.where(counted, logits_BT, zero)
    labels = torch.where(counted, batch.labels_BT.to(logits.dtype), zero)
    weights = torch.where(counted, batch.weight_BT.to(logits.dtype), zero)
    losses = [_loss(kind)(logits[:, t], labels[:, t]) for t, kind in enumerate(kinds)]
    return (weights * torch.stack(losses, dim=1)).sum(dim=0)


def local_denominators(batch: Batch) -> Tensor:
    """This rank's float64 [sum of weight_B, sum of weight_BT per task], (1 + T,).

    Sum it over ranks before `per_task`.
    """
    observed = torch.where(batch.mask_BT, batch.weight_BT.double(), 0.0)
    return torch.cat([batch.weight_B.double().sum(dim=0, keepdim=True), observed.sum(dim=0)])


def per_task(sums_T: Tensor, denominators: Tensor, mode: Denominator) -> Tensor:
    """This rank's part of each task's loss: summed over ranks it is that of the global batch.

    Args:
        sums_T: `task_losses` of this rank.
        denominators: `local_denominators` summed over ranks.
        mode: `batch` divides every task by the weight of the global batch, `observed` by the weight
            of its own observed rows.

    Returns:
        loss_T; 0 for a task whose denominator is 0.
    """
    observed = denominators[1:]
    chosen = denominators[:1].expand_as(observed) if mode == "batch" else observed
    positive = chosen > 0
    divisor = torch.where(positive, chosen, 1.0).to(sums_T.dtype)
    return torch.where(positive, sums_T / divisor, sums_T.new_zeros(()))


def probabilities(logits_BT: Tensor, kinds: Sequence[str]) -> Tensor:
    """Predictions: the sigmoid for binary tasks, the value itself for regression."""
    columns = [
        logits_BT[:, t] if kind == "regression" else torch.sigmoid(logits_BT[:, t])
        for t, kind in enumerate(kinds)
    ]
    return torch.stack(columns, dim=1)


def _loss(kind: str):
    if kind == "regression":
        return _squared_error
    assert kind == "binary", kind
    return _cross_entropy


def _squared_error(prediction_B: Tensor, label_B: Tensor) -> Tensor:
    return (prediction_B - label_B).square()


def _cross_entropy(logit_B: Tensor, label_B: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logit_B, label_B, reduction="none")
