"""Refinement: each task weighs the features by its own SENet-like network.

DTRN's Task-specific Representation Refinement Module (see `dtrn`). Found in public descriptions of
the paper: one SENet-like network per task; an MLP on the feature embeddings gives their weights,
which multiply them. The form below is our reconstruction, after FiBiNET's SENet (Huang et al.,
RecSys 2019).
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from raymtl.config import Section
from raymtl.models.blocks import BankOfMLPs


class RefinementSection(Section):
    refinement: bool = True
    """Whether each task weighs the features; without it they are concatenated as they are (the
    ablation "without TRM")."""
    refine_reduction: PositiveInt = 4
    """F over the width of the weighing network's hidden layer, which is at least 1. Lower it where
    F is small: few hidden units cannot weigh many features apart."""
    squeeze: Literal["flatten", "mean"] = "flatten"
    """What that network reads: all features' embeddings, or each one's mean as in FiBiNET."""
    refine_activation: Literal["sigmoid", "2sigmoid", "relu"] = "sigmoid"
    """What makes its outputs weights; `2sigmoid` starts near 1 where `sigmoid` starts near 1/2."""
    granularity: Literal["field", "dim"] = "field"
    """One weight per feature, or one per float of its embedding."""


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "2sigmoid": lambda x: 2 * torch.sigmoid(x),
    "relu": F.relu,
}


class Refinement(nn.Module):
    """x_t = flatten(w_t * E_t),  w_t = act(W2_t ReLU(W1_t squeeze(E_t) + b1_t) + b2_t).

    E_t holds the F embeddings as task t sees them. Ours: the squeeze, the activation, the biases (0
    at first) and the hidden width F / refine_reduction.
    """

    def __init__(self, config: RefinementSection, num_tasks: int, num_fields: int, width: int):
        super().__init__()
        self.squeeze, self.width = config.squeeze, width
        self.activation = _ACTIVATIONS[config.refine_activation]
        self.weights_width = width if config.granularity == "dim" else 1
        self.networks = BankOfMLPs(
            num_tasks,
            num_fields * width if config.squeeze == "flatten" else num_fields,
            [max(1, num_fields // config.refine_reduction)],
            out_features=num_fields * self.weights_width,
        )

    def weights(self, fields_KBFD: Tensor) -> Tensor:
        """What each task multiplies the embeddings by, (T, B, F, 1), or (T, B, F, D) per float.

        Args:
            fields_KBFD: K is T, or 1 where all tasks see the same.
        """
        flatten = self.squeeze == "flatten"
        squeezed_KBI = fields_KBFD.flatten(2) if flatten else fields_KBFD.mean(dim=-1)
        logits_TBO = self.networks(squeezed_KBI)
        return self.activation(logits_TBO).unflatten(-1, (-1, self.weights_width))

    def forward(self, fields_KBFD: Tensor) -> Tensor:
        """Returns x_TBI with I = F * D."""
        return (fields_KBFD * self.weights(fields_KBFD)).flatten(2)
