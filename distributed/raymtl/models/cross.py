"""Feature crossing below an MLP: DCN-V2's cross network and FINT's interaction, one per task."""

import torch
from torch import Tensor, nn


class CrossNetwork(nn.Module):
    """DCN-V2: x_l+1 = x_0 * (W_l x_l + b_l) + x_l, element-wise, for N networks at once.

    Wang et al., "DCN V2: Improved Deep & Cross Network" (WWW 2021); W is a full matrix. Weights
    start as xavier_normal_, biases as 0. Batching N networks is ours.
    """

    def __init__(self, num: int, in_features: int, num_layers: int):
        super().__init__()
        shape = (num_layers, num, in_features, in_features)
        self.weight_LNIO = nn.Parameter(_xavier_normal(shape))
        self.bias_LNO = nn.Parameter(torch.zeros(shape[:-1]))

    def forward(self, x_NBI: Tensor) -> Tensor:
        """Crosses the input with itself; (N, B, I)."""
        crossed = x_NBI
        for weight_NIO, bias_NO in zip(self.weight_LNIO, self.bias_LNO, strict=True):
            linear = torch.baddbmm(bias_NO.unsqueeze(1), crossed, weight_NIO)
            crossed = x_NBI * linear + crossed
        return crossed


class FintInteraction(nn.Module):
    """FINT: V_l+1 = V_l * (W_l [V_0; 1]), fields times fields, for N networks at once.

    Zhao et al., "FINT: Field-aware INTeraction Neural Network for CTR Prediction" (2021), in the
    form of its public code: W in R^{F x (F+1)} mixes the F fields, its last column stands for the
    row of ones and carries V_l on. Ours: N networks at once, and that column starts at 1 (the rest
    xavier_normal_), so that a layer starts near V_l itself however small the embeddings are.
    """

    def __init__(self, num: int, num_fields: int, num_layers: int):
        super().__init__()
        self.num_fields = num_fields
        shape = (num_layers, num, num_fields, num_fields)
        self.weight_LNGF = nn.Parameter(_xavier_normal(shape))
        """W without its last column: output field G, input field F."""
        self.carry_LNG = nn.Parameter(torch.ones(shape[:-1]))
        """W's last column."""

    def forward(self, x_NBI: Tensor) -> Tensor:
        """Lets the fields, I = F * D side by side, interact; (N, B, I)."""
        first_NBFD = x_NBI.unflatten(-1, (self.num_fields, -1))
        fields_NBFD = first_NBFD
        for weight_NGF, carry_NG in zip(self.weight_LNGF, self.carry_LNG, strict=True):
            mixed_NBGD = torch.einsum("ngf,nbfd->nbgd", weight_NGF, first_NBFD)
            fields_NBFD = fields_NBFD * (mixed_NBGD + carry_NG[:, None, :, None])
        return fields_NBFD.flatten(2)


def _xavier_normal(shape: tuple[int, int, int, int]) -> Tensor:
    weight = torch.empty(shape)
    for one in weight.flatten(0, 1):
        nn.init.xavier_normal_(one)
    return weight
