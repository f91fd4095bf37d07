"""What models share: banks of MLPs of one shape, and the way from a batch's inputs to one vector.

The MLP is that of the official STEM code (LiangcaiSu/STEM, its MLP_Block): linear, activation,
dropout for each hidden unit, then an optional linear output. Running all experts of a layer as one
batched product instead of a loop is ours.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from raymtl.batch import Inputs, InputShape
from raymtl.models.bank_linear import bank_linear

Activation = Literal["relu", "gelu", "silu", "tanh"]
HiddenUnits = tuple[PositiveInt, ...]
Dropout = Annotated[float, Field(ge=0, lt=1)]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class BankOfMLPs(nn.Module):
    """E MLPs of one shape with stacked weights: experts, gates and towers batched, not looped.

    Weights start as xavier_normal_ per MLP, biases as 0, as in the official STEM code. Without
    `out_features` an MLP ends in activation and dropout, with it in a linear layer.
    """

    def __init__(
        self,
        num: int,
        in_features: int,
        hidden_units: Sequence[int],
        out_features: int | None = None,
        activation: Activation = "relu",
        dropout: float = 0.0,
    ):
        super().__init__()
        assert hidden_units or out_features, "an MLP without layers"
        self.num, self.in_features = num, in_features
        self.num_hidden, self.dropout = len(hidden_units), dropout
        self.activation = _ACTIVATIONS[activation]
        sizes = [in_features, *hidden_units, *([out_features] if out_features else [])]
        self.out_features = sizes[-1]
        pairs = list(pairwise(sizes))
        self.weights = nn.ParameterList([_xavier_normal(num, i, o) for i, o in pairs])
        """One (E, in, out) per layer."""
        self.biases = nn.ParameterList([torch.zeros(num, o) for _, o in pairs])
        """One (E, out) per layer."""

    def forward(self, inputs_GBI: Tensor) -> Tensor:
        """Runs all E MLPs.

        Args:
            inputs_GBI: G inputs; G divides E, and input g goes to MLPs g*E/G .. (g+1)*E/G - 1. So
                (1, B, in) feeds all of them and (E, B, in) each its own.

        Returns:
            (E, B, out), not necessarily contiguous.
        """
        x = inputs_GBI
        for n, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = n < self.num_hidden
            with_relu = hidden and self.activation is F.relu
            x = bank_linear(x, weight, bias, with_relu)
            if hidden:
                x = x if with_relu else self.activation(x)
                x = F.dropout(x, self.dropout, self.training)
        return x

    def on_each(self, inputs_PBI: Tensor) -> Tensor:
        """Runs every MLP on every one of P inputs, as one product; (P, E, B, out)."""
        rows = self(inputs_PBI.flatten(0, 1).unsqueeze(0))
        return rows.unflatten(1, inputs_PBI.shape[:2]).transpose(0, 1)


class FieldStack(nn.Module):
    """One flat vector per view from everything a batch holds.

    A numeric column becomes one more field: its value times a trained vector per view, without
    bias, as the official STEM code does (nn.Linear(1, d * (T + 1), bias=False)). A sequence passed
    whole becomes one more field too, the mean of its items; models that read sequences themselves
    turn that off. Fields stand in the order: ids, numeric columns, sequences. (The mean is ours.)
    """

    def __init__(self, shape: InputShape, sequences: bool = True):
        super().__init__()
        self.sequence_names = tuple(shape.sequence_lengths) if sequences else ()
        self.num_fields = shape.num_fields + shape.num_numeric + len(self.sequence_names)
        self.width, self.out_features = shape.width, self.num_fields * shape.width
        weight = torch.empty(shape.num_numeric, shape.num_views, shape.width)
        for column in weight.flatten(1):
            nn.init.xavier_normal_(column.unsqueeze(1))
        self.numeric_weight_NVD = nn.Parameter(weight) if shape.num_numeric else None

    def forward(self, inputs: Inputs) -> Tensor:
        """Returns x_VBI with I = num_fields * D."""
        parts = [inputs.views_BVFD]
        if self.numeric_weight_NVD is not None:
            parts.append(torch.einsum("bn,nvd->bvnd", inputs.numeric_BN, self.numeric_weight_NVD))
        for name in self.sequence_names:
            sequence = inputs.sequences[name]
            mean_BVD = masked_mean(sequence.values_BSVD, sequence.mask_BS)
            parts.append(mean_BVD.unsqueeze(2))
        stacked = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
        # Contiguous, since products copy strided inputs (ids alone lie so already); then rounded,
        # once for all that read it (one pass that does both is many times slower).
        x_VBI = stacked.transpose(0, 1).flatten(2)
        device = x_VBI.device.type
        enabled = torch.is_autocast_enabled(device)
        return x_VBI.to(torch.get_autocast_dtype(device)) if enabled else x_VBI


def masked_mean(values_BSVD: Tensor, mask_BS: Tensor) -> Tensor:
    """Mean over the steps that hold an item, (B, V, D); zeros where a sequence is empty."""
    mask = mask_BS.to(values_BSVD.dtype)
    total = torch.einsum("bsvd,bs->bvd", values_BSVD, mask)
    return total / mask.sum(dim=1).clamp(min=1)[:, None, None]


def shared_input(x_VBI: Tensor, shared_1BI: Tensor | None) -> Tensor:
    """What streams shared by the tasks read, (1, B, I): given, or x itself, or its mean over tasks.

    The mean is ours: it is for heads on one vector per task (V = T) without a shared one.
    """
    if shared_1BI is not None:
        return shared_1BI
    return x_VBI if len(x_VBI) == 1 else x_VBI.mean(dim=0, keepdim=True)


def mean_gates(gates_TBK: Sequence[Tensor], weight_B: Tensor | None) -> Tensor:
    """Gate weights of each of L layers, mean over rows, (L, T, K).

    Args:
        weight_B: row weights, 0 for padding; null weighs all rows 1.

    Returns:
        Rows that sum to 1, or to 0 without rows.
    """
    num_rows = gates_TBK[0].shape[1]
    weight = gates_TBK[0].new_ones(num_rows) if weight_B is None else weight_B
    share_B = weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
    return torch.stack([torch.einsum("tbk,b->tk", gate, share_B) for gate in gates_TBK])


def mass_by_owner(mass_LTK: Tensor, num_tasks: int, num_shared: int) -> Tensor:
    """Sums over the experts of an owner, (L, T, T + 1): the tasks', then the shared ones.

    Args:
        mass_LTK: over all experts of a layer, task by task, shared ones last.
    """
    specific, shared = mass_LTK.split([mass_LTK.shape[-1] - num_shared, num_shared], dim=-1)
    by_task = specific.unflatten(-1, (num_tasks, -1)).sum(-1)
    return torch.cat([by_task, shared.sum(-1, keepdim=True)], dim=-1)


def _xavier_normal(num: int, in_features: int, out_features: int) -> Tensor:
    weight = torch.empty(num, in_features, out_features)
    for one in weight:
        nn.init.xavier_normal_(one)
    return weight
