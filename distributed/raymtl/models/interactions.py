"""DEPHN's parts below its gates: soft selection gating, and its three kinds of experts.

Su et al., PHN (CICAI 2022, arXiv 2206.09184), whose parts DEPHN (Kong et al., IJCNN 2023) is made
of. Everything is stacked over O owners (1 where the tasks share it, T where each has its own) and E
experts of an owner, and runs as batched products. F fields, D their width, I = F * D.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Selection = Literal["gated", "attention", "none"]
Residual = Literal["trainable", "plain", "none"]


class SoftSelection(nn.Module):
    """SSG: E_sg = s(g) * attention(E) + (1 - s(g)) * E, s the sigmoid, g one number per dimension.

    PHN equations 4 to 6, DEPHN equation 1; attention is softmax(QK'/sqrt(d)) V over the fields.
    `attention` leaves the gate out and `none` both, PHN's Table 3. Ours: g starts at 0 (half and
    half); no projection after attention; every owner has its own attention and gate (whether
    branches share the attention is not said).
    """

    def __init__(
        self, num_owners: int, num_fields: int, width: int, num_heads: int, mode: Selection
    ):
        super().__init__()
        assert width % num_heads == 0, f"{num_heads} heads of {width} numbers"
        self.num_owners, self.num_heads = num_owners, num_heads
        shape = (3, num_owners, width, width)
        self.projections = None if mode == "none" else nn.Parameter(_xavier_normal(shape))
        """Of queries, keys and values: (3, O, D, D)."""
        gate = torch.zeros(num_owners, num_fields, width)
        self.gate_OFD = nn.Parameter(gate) if mode == "gated" else None

    def forward(self, fields_BFD: Tensor) -> Tensor:
        """Returns the fields as each owner selects them, (O, B, F, D)."""
        own_1BFD = fields_BFD.unsqueeze(0)
        if self.projections is None:
            return own_1BFD.expand(self.num_owners, -1, -1, -1)
        attended_OBFD = self._attention(fields_BFD, self.projections)
        if self.gate_OFD is None:
            return attended_OBFD
        gate_O1FD = torch.sigmoid(self.gate_OFD).unsqueeze(1)
        return gate_O1FD * attended_OBFD + (1 - gate_O1FD) * own_1BFD

    def _attention(self, fields_BFD: Tensor, projections: Tensor) -> Tensor:
        projected = torch.einsum("bfd,node->nobfe", fields_BFD, projections)
        query, key, value = projected.unflatten(-1, (self.num_heads, -1)).transpose(3, 4).unbind()
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        return (torch.softmax(scores, dim=-1) @ value).transpose(2, 3).flatten(3)


class DeepExperts(nn.Module):
    """DNN experts: x <- LeakyReLU(W x + b), PHN equation 3, with a residual link `r * x`.

    The link is only there between layers of equal width; its place, outside the activation, is ours
    (the papers name "residual link with trainable parameters" and print no formula).
    """

    def __init__(
        self, shape: tuple[int, int, int], units: Sequence[int], residual: Residual, dropout: float
    ):
        super().__init__()
        num_owners, num_experts, in_features = shape
        self.out_features, self.dropout = units[-1], dropout
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.links = nn.ModuleList()
        for i, o in pairwise([in_features, *units]):
            self.weights.append(_xavier_normal((num_owners, num_experts, i, o)))
            self.biases.append(torch.zeros(num_owners, num_experts, 1, o))
            own = residual if i == o else "none"
            self.links.append(ResidualLink((num_owners, num_experts, 1, o), own))

    def forward(self, x_OBI: Tensor) -> Tensor:
        """Returns (O, E, B, H)."""
        x = x_OBI.unsqueeze(1)
        for weight, bias, link in zip(self.weights, self.biases, self.links, strict=True):
            hidden = F.leaky_relu(_per_expert(x, weight) + bias)
            x = link(F.dropout(hidden, self.dropout, self.training), x)
        return x


class CrossLayers(nn.Module):
    """CL, DCN and DCN-V2 in one layer, PHN Fig. 2: x <- x0 * (Omega x) + x0 (omega' x) + b + r * x.

    Omega is a matrix of I x I, so a layer of one expert has about I^2 weights. With Omega = 0 it is
    DCN's interaction, with omega = 0 that of DCN-V2. The residual's form is ours.
    """

    def __init__(self, shape: tuple[int, int, int], num_layers: int, residual: Residual):
        super().__init__()
        num_owners, num_experts, width = shape
        own = (num_owners, num_experts)
        layers = range(num_layers)
        self.matrices = nn.ParameterList([_xavier_normal((*own, width, width)) for _ in layers])
        """Omega transposed, (O, E, I, I) per layer."""
        self.vectors = nn.ParameterList([_xavier_normal((*own, width, 1)) for _ in layers])
        self.biases = nn.ParameterList([torch.zeros(*own, 1, width) for _ in layers])
        self.links = nn.ModuleList(ResidualLink((*own, 1, width), residual) for _ in layers)

    def forward(self, x_OBI: Tensor) -> Tensor:
        """Returns (O, E, B, I)."""
        x = first = x_OBI.unsqueeze(1)
        layers = zip(self.matrices, self.vectors, self.biases, self.links, strict=True)
        for matrix, vector, bias, link in layers:
            # x0 (omega' x) is x0 * (W x) with omega in every row of W, so one product does both.
            crossed = torch.addcmul(bias, first, _per_expert(x, matrix + vector))
            x = link(crossed, x)
        return x


class FieldInteraction(nn.Module):
    """FI after FINT, PHN Fig. 3: V <- V0 * (Omega V) + omega (x) V, V of F rows (fields).

    omega holds one number per field: the trainable residual link, started at 1 (ours). `plain`
    leaves it at 1, `none` leaves the term out.
    """

    def __init__(self, shape: tuple[int, int, int], num_layers: int, residual: Residual):
        super().__init__()
        num_owners, num_experts, num_fields = shape
        own, layers = (num_owners, num_experts), range(num_layers)
        mixing = (*own, num_fields, num_fields)
        self.matrices = nn.ParameterList([_xavier_normal(mixing) for _ in layers])
        """Omega transposed, (O, E, F, F) per layer."""
        self.links = nn.ModuleList(ResidualLink((*own, 1, 1, num_fields), residual) for _ in layers)

    def forward(self, fields_OBFD: Tensor) -> Tensor:
        """Returns (O, E, B, F, D)."""
        # Fields last, so that each layer is one product without copies for its layout.
        x = first = fields_OBFD.transpose(2, 3).contiguous().unsqueeze(1)
        for matrix, link in zip(self.matrices, self.links, strict=True):
            mixed = _per_expert(x.flatten(2, 3), matrix).unflatten(2, first.shape[2:4])
            x = link(first * mixed, x)
        return x.transpose(3, 4)


class ResidualLink(nn.Module):
    """out + r * x with r trained from 1, fixed at 1, or absent."""

    def __init__(self, shape: tuple[int, ...], residual: Residual):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape)) if residual == "trainable" else None
        self.adds = residual != "none"

    def forward(self, out: Tensor, x: Tensor) -> Tensor:
        """The layer's output `out` with its input `x` added."""
        if not self.adds:
            return out
        return out + x if self.weight is None else torch.addcmul(out, self.weight, x)


def _per_expert(x: Tensor, weight_OEIJ: Tensor) -> Tensor:
    """(O, E or 1, B, I) by (O, E, I, J); one input for all experts of an owner is not copied."""
    return torch.einsum("oebi,oeij->oebj", x, weight_OEIJ)


def _xavier_normal(shape: tuple[int, ...]) -> Tensor:
    """Each (in, out) matrix of the stack as torch's xavier_normal_."""
    std = (2 / (shape[-2] + shape[-1])) ** 0.5
    return torch.randn(shape) * std
