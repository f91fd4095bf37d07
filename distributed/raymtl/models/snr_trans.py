"""SNR-Trans: trained connections between experts and tasks, each open, closed or in between."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from raymtl.config import Section
from raymtl.models.blocks import Activation, BankOfMLPs, Dropout, HiddenUnits, shared_input
from raymtl.models.head_model import HeadModel

BETA, GAMMA, EPSILON = 0.9, -0.1, 1.1
"""Temperature of the gates, and the range they are stretched to before being cut to [0, 1]."""


class SnrTransConfig(Section):
    name: Literal["snr_trans"] = "snr_trans"
    num_experts: PositiveInt = 4
    """Sub-networks all tasks may connect to; 4 in public code (MMLRec)."""
    expert_hidden_units: Annotated[HiddenUnits, Field(min_length=1)] = (256, 128)
    """Widths of every sub-network, as there."""
    tower_hidden_units: HiddenUnits = (64,)
    """Widths of each task's tower before its linear output, as there."""
    activation: Activation = "relu"
    """Applied after every hidden layer."""
    dropout: Dropout = 0.0
    """Dropout after every hidden layer, while training."""
    gate_noise: bool = True
    """While training, draw every gate anew each step, one draw for all rows of a rank (ranks draw
    apart). False trains the gates as they are evaluated; then training is equal on any world
    size."""
    l0_weight: NonNegativeFloat = 1e-4
    """Loss per open connection (the expected number of gates above 0); more closes more of them.
    Ours: no source gives a number. 0 leaves it out."""


class SnrTransHead(nn.Module):
    """y_t = h_t(sum_j z_tj W_tj u_j), u_j = f_j(x).

    With one vector per task the sub-networks read the vector of all tasks (`shared_input`), which
    is ours.
    """

    def __init__(
        self,
        config: SnrTransConfig,
        num_tasks: int,
        in_features: int,
        given: tuple[int | None, ...] = (),
    ):
        super().__init__()
        num, width = config.num_experts, config.expert_hidden_units[-1]
        self.gate_noise, self.l0_weight = config.gate_noise, config.l0_weight
        style = {"activation": config.activation, "dropout": config.dropout}
        self.experts = BankOfMLPs(num, in_features, config.expert_hidden_units, **style)
        transforms = torch.empty(num_tasks, num, width, width)
        for one in transforms.flatten(0, 1):
            nn.init.xavier_normal_(one)
        self.transforms_TEIO = nn.Parameter(transforms)
        """W_tj, without bias."""
        self.log_alpha_TE = nn.Parameter(torch.zeros(num_tasks, num))
        """log(alpha): 0 is a gate half open."""
        self.towers = BankOfMLPs(num_tasks, width, config.tower_hidden_units, 1, **style)

    def forward(self, x_VBI: Tensor, shared_1BI: Tensor | None = None) -> Tensor:
        """Returns logits_BT; of several vectors, reads the shared one."""
        experts_BEI = self.experts(shared_input(x_VBI, shared_1BI)).transpose(0, 1)
        # Gates into the matrices: T small products instead of T copies of the experts' outputs.
        gated_TEIO = self.gates()[:, :, None, None] * self.transforms_TEIO
        routed_TBO = torch.einsum("bi,tio->tbo", experts_BEI.flatten(1), gated_TEIO.flatten(1, 2))
        return self.towers(routed_TBO).squeeze(-1).t()

    def gates(self) -> Tensor:
        """z_TE in [0, 1]: a draw while training with noise, else what they settle at."""
        if self.training and self.gate_noise:
            tiny = torch.finfo(self.log_alpha_TE.dtype).eps
            u_TE = torch.rand_like(self.log_alpha_TE).clamp(tiny, 1 - tiny)
            s_TE = torch.sigmoid((torch.logit(u_TE) + self.log_alpha_TE) / BETA)
        else:
            s_TE = torch.sigmoid(self.log_alpha_TE)
        return (s_TE * (EPSILON - GAMMA) + GAMMA).clamp(0, 1)

    def penalty(self, logits_BT: Tensor) -> Tensor:
        """Weighted expected number of open gates, a scalar: sum P(z > 0)."""
        open_TE = torch.sigmoid(self.log_alpha_TE - BETA * math.log(-GAMMA / EPSILON))
        return self.l0_weight * open_TE.sum()


class SnrTrans(HeadModel):
    """SNR-Trans: v_t = sum_j z_tj W_tj u_j, with hard-concrete gates z under an L0 penalty.

    Ma et al., "SNR: Sub-Network Routing for Flexible Parameter Sharing in Multi-Task Learning"
    (AAAI 2019), for one layer of sub-networks u_j under the tasks' towers. With u ~ U(0, 1):

        s = sigmoid((log u - log(1 - u) + log alpha) / beta)
        z = min(1, max(0, s (eps - gamma) + gamma)),      beta .9, gamma -.1, eps 1.1

    Numbers from public code (MMLRec), which divides log alpha alone by beta and trains u; here the
    gate is the hard-concrete one of Louizos et al. (ICLR 2018), from which also come the value
    without noise (sigmoid(log alpha), stretched and cut), used in evaluation, and the penalty
    sum sigmoid(log alpha - beta log(-gamma / eps)). A gate is one number for all rows.

    Ours: log alpha as the parameter, from 0; its penalty's weight; `gate_noise`; gates folded into
    the matrices and tasks batched; numeric columns and sequences as fields (`FieldStack`).
    """

    task_specific = False
    Config = SnrTransConfig
    Head = SnrTransHead

    def penalty(self, logits_BT: Tensor) -> Tensor:
        """The L0 penalty, a scalar; see `SnrTransHead.penalty`."""
        return self.head.penalty(logits_BT)  # pyright: ignore
