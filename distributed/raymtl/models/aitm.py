"""AITM: a task learns from its attention to its own vector and to what the task before hands on."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from raymtl.batch import InputShape
from raymtl.config import Section
from raymtl.models import chains
from raymtl.models.blocks import Activation, BankOfMLPs, Dropout, HiddenUnits
from raymtl.models.head_model import HeadModel


class AitmConfig(Section):
    name: Literal["aitm"] = "aitm"
    bottom_hidden_units: Annotated[HiddenUnits, Field(min_length=1)] = (128, 64, 32)
    """Widths of each task's bottom, the paper's; the last one is k, the width of what is handed on
    and of the attention (32 in the paper too)."""
    tower_hidden_units: HiddenUnits = ()
    """Widths of each task's output MLP before its linear output; empty is a linear output. Ours:
    the paper gives no width for it."""
    activation: Activation = "relu"
    """Applied after every hidden layer."""
    dropout: Dropout = 0.0
    """Dropout after every hidden layer, while training; the paper has 0.1, 0.3 and 0.3 in its
    bottoms."""
    calibration_weight: NonNegativeFloat = 0.6
    """alpha, weight of the calibrator: how much a task more probable than the one before it costs;
    the paper's. 0 leaves it out."""


class AitmHead(nn.Module):
    """Bottoms, information transfer along the chain, outputs.

    With one vector per task bottom t reads x_t, which is ours.
    """

    chained = True
    """Relates tasks as events: none that follows another may be a regression."""

    def __init__(
        self,
        config: AitmConfig,
        num_tasks: int,
        in_features: int,
        given: tuple[int | None, ...] = (),
    ):
        super().__init__()
        self.links = chains.links(num_tasks, given)
        self.calibration_weight = config.calibration_weight
        style = {"activation": config.activation, "dropout": config.dropout}
        units, k = config.bottom_hidden_units, config.bottom_hidden_units[-1]
        self.bottoms = BankOfMLPs(num_tasks, in_features, units, **style)
        # Only of tasks that another one follows: the others hand nothing on.
        self.info_gates = nn.ModuleDict(
            {str(before): BankOfMLPs(1, k, [k], **style) for before, _ in self.links}
        )
        self.transfer = Transfer(k) if self.links else None
        self.towers = BankOfMLPs(num_tasks, k, config.tower_hidden_units, 1, **style)

    def forward(self, x_VBI: Tensor, shared_1BI: Tensor | None = None) -> Tensor:
        """Returns logits_BT; the shared vector is not read."""
        z_TBK = list(self.bottoms(x_VBI).unbind(0))
        handed_on: dict[int, Tensor] = {}
        for before, task in self.links:
            assert self.transfer is not None
            if before not in handed_on:
                handed_on[before] = self.info_gates[str(before)](z_TBK[before][None])[0]
            z_TBK[task] = self.transfer(handed_on[before], z_TBK[task])
        return self.towers(torch.stack(z_TBK)).squeeze(-1).t()

    def penalty(self, logits_BT: Tensor) -> Tensor:
        """The calibrator, (B,): alpha * sum over links of max(p_t - p_s, 0), t after s."""
        p_BT = torch.sigmoid(logits_BT)
        excess_B = logits_BT.new_zeros(len(logits_BT))
        for before, task in self.links:
            excess_B = excess_B + (p_BT[:, task] - p_BT[:, before]).clamp(min=0)
        return self.calibration_weight * excess_B


class Transfer(nn.Module):
    """AIT: z = sum_u w_u h1(u), w = softmax_u(<h2(u), h3(u)> / sqrt(k)), over u in {p, q}.

    One set of weights for all tasks, as the paper's h1, h2 and h3 bear no task's index. Ours: each
    is one linear layer with a bias.
    """

    def __init__(self, k: int):
        super().__init__()
        self.projections = BankOfMLPs(3, k, [], k)
        """h1 (values), h2 and h3 (whose product weighs them)."""

    def forward(self, handed_on_BK: Tensor, own_BK: Tensor) -> Tensor:
        """Mixes what the task before hands on (p) with the task's own vector (q); (B, k)."""
        both_UBK = torch.stack([handed_on_BK, own_BK])
        value_UBK, query_UBK, key_UBK = self.projections.on_each(both_UBK).unbind(1)
        score_UB = (query_UBK * key_UBK).sum(-1) / own_BK.shape[-1] ** 0.5
        return torch.einsum("ub,ubk->bk", torch.softmax(score_UB, dim=0), value_UBK)


class Aitm(HeadModel):
    """AITM: z_t mixes its own q_t with p_t-1, what the task before hands on.

    Eqs. 3 to 13 of Xi et al., "Modeling the Sequential Dependence among Audience Multi-step
    Conversions with Multi-task Learning in Targeted Display Advertising" (KDD 2021):

        q_t = f_t(x), z_1 = q_1, p_t-1 = g_t-1(z_t-1), z_t = AIT(p_t-1, q_t)
        y_t = sigmoid(MLP_t(z_t)),  L = cross entropy + alpha mean_rows sum_t max(y_t - y_t-1, 0)

    The embeddings are shared. A task's label is the whole event (bought, over all impressions).

    Ours: the order from the schema's `given` (several tasks may follow one; without any `given`
    the tasks' order is the chain); an information gate g is one hidden layer of width k with
    activation and dropout; no batch normalisation; numeric columns and sequences as fields.
    """

    task_specific = False
    Config = AitmConfig
    Head = AitmHead

    def __init__(self, config: Any, shape: InputShape):
        chains.require_binary("aitm", shape)
        super().__init__(config, shape)

    def penalty(self, logits_BT: Tensor) -> Tensor:
        """The calibrator, (B,); see `AitmHead.penalty`."""
        return self.head.penalty(logits_BT)  # pyright: ignore
