"""MMoE: experts shared by all tasks, mixed by a gate per task; with OMoE and ME-MMoE."""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from raymtl.config import Section
from raymtl.models.blocks import (
    Activation,
    BankOfMLPs,
    Dropout,
    HiddenUnits,
    mass_by_owner,
    mean_gates,
    shared_input,
)
from raymtl.models.head_model import GatedHeadModel
from raymtl.models.mixing import mix, mix_each


class _MixtureSection(Section):
    expert_hidden_units: Annotated[HiddenUnits, Field(min_length=1)] = (512, 512, 512)
    """Widths of every expert; the official STEM repository's for its baselines."""
    gate_hidden_units: HiddenUnits = ()
    """Widths of every gate before its linear output; empty is the paper's linear gate."""
    tower_hidden_units: HiddenUnits = (128, 64)
    """Widths of each task's tower before its linear output, as in the STEM repository."""
    activation: Activation = "relu"
    """Applied after every hidden layer of experts, gates and towers."""
    dropout: Dropout = 0.0
    """Dropout after every hidden layer, gates' too, while training."""


class MmoeConfig(_MixtureSection):
    name: Literal["mmoe"] = "mmoe"
    num_experts: PositiveInt = 8
    """n, experts all tasks share; 8 in the paper and in the STEM repository."""


class OmoeConfig(_MixtureSection):
    name: Literal["omoe"] = "omoe"
    num_experts: PositiveInt = 8
    """n, experts all tasks share."""


class MeMmoeConfig(_MixtureSection):
    name: Literal["me_mmoe"] = "me_mmoe"
    num_specific_experts: PositiveInt = 1
    """Experts that read each task's embeddings; STEM's default."""
    num_shared_experts: PositiveInt = 8
    """Experts that read the shared embeddings; STEM's default."""
    gate_hidden_units: HiddenUnits = (128, 64)
    """Widths of every gate before its linear output; STEM's default, so that the two differ by the
    gradient stop only."""


class MmoeHead(nn.Module):
    """y_t = h_t(sum_i softmax(gate_t(x))_i f_i(x)).

    With one vector per task gate and experts of task t read x_t: the experts run T times (ours).
    """

    one_gate = False

    def __init__(
        self,
        config: MmoeConfig | OmoeConfig,
        num_tasks: int,
        in_features: int,
        given: tuple[int | None, ...] = (),
    ):
        super().__init__()
        self.num_tasks = num_tasks
        style = {"activation": config.activation, "dropout": config.dropout}
        num_gates = 1 if self.one_gate else num_tasks
        num, experts = config.num_experts, config.expert_hidden_units
        self.experts = BankOfMLPs(num, in_features, experts, **style)
        self.gates = BankOfMLPs(num_gates, in_features, config.gate_hidden_units, num, **style)
        self.towers = BankOfMLPs(num_tasks, experts[-1], config.tower_hidden_units, 1, **style)

    def forward(self, x_VBI: Tensor, shared_1BI: Tensor | None = None) -> Tensor:
        """Returns logits_BT; the shared vector is not read."""
        experts_VEBH = self.experts.on_each(x_VBI)
        # Each of the V inputs serves the gates that read it: all of them, or one.
        gate_VQBE = self._gates(x_VBI).unflatten(0, (len(x_VBI), -1))
        return self.towers(mix_each(gate_VQBE, experts_VEBH)).squeeze(-1).t()

    def gate_sources(self, task_names: tuple[str, ...]) -> tuple[str, ...]:
        """The columns of `gate_mass`."""
        return tuple(f"expert {e}" for e in range(self.experts.num))

    @torch.no_grad()
    def gate_mass(
        self, x_VBI: Tensor, shared_1BI: Tensor | None = None, weight_B: Tensor | None = None
    ) -> Tensor:
        """Mean gate weights (1, T, E); see `GatedHeadModel.gate_mass`."""
        gate = self._gates(x_VBI)
        return mean_gates([gate.expand(self.num_tasks, -1, -1)], weight_B)

    def _gates(self, x_VBI: Tensor) -> Tensor:
        """(T, B, E), or (V, B, E) with one gate for all tasks."""
        logits = self.gates.on_each(x_VBI).squeeze(1) if self.one_gate else self.gates(x_VBI)
        return torch.softmax(logits, dim=-1)


class OmoeHead(MmoeHead):
    """MmoeHead with one gate for all tasks."""

    one_gate = True


class MeMmoeHead(nn.Module):
    """y_t = h_t(sum_k softmax(gate_t(x_t + x_S))_k U[k]), U = every task's and the shared experts.

    Experts of task t read x_t, shared ones x_S; nothing is stopped.
    """

    def __init__(
        self,
        config: MeMmoeConfig,
        num_tasks: int,
        in_features: int,
        given: tuple[int | None, ...] = (),
    ):
        super().__init__()
        self.num_tasks = num_tasks
        style = {"activation": config.activation, "dropout": config.dropout}
        num_specific, experts = num_tasks * config.num_specific_experts, config.expert_hidden_units
        num = num_specific + config.num_shared_experts
        self.specific_experts = BankOfMLPs(num_specific, in_features, experts, **style)
        """Task by task."""
        self.shared_experts = BankOfMLPs(config.num_shared_experts, in_features, experts, **style)
        self.gates = BankOfMLPs(num_tasks, in_features, config.gate_hidden_units, num, **style)
        self.towers = BankOfMLPs(num_tasks, experts[-1], config.tower_hidden_units, 1, **style)

    def forward(self, x_VBI: Tensor, shared_1BI: Tensor | None = None) -> Tensor:
        """Returns logits_BT."""
        shared_1BI = shared_input(x_VBI, shared_1BI)
        gate_TBK = self._gates(x_VBI, shared_1BI)
        gate_TBE, gate_shared = gate_TBK.split(
            [self.specific_experts.num, self.shared_experts.num], dim=-1
        )
        specific_TBH = mix(gate_TBE, self.specific_experts(x_VBI))
        shared_TBH = mix(gate_shared, self.shared_experts(shared_1BI))
        return self.towers(specific_TBH + shared_TBH).squeeze(-1).t()

    def gate_sources(self, task_names: tuple[str, ...]) -> tuple[str, ...]:
        """The columns of `gate_mass`."""
        return (*task_names, "shared")

    @torch.no_grad()
    def gate_mass(
        self, x_VBI: Tensor, shared_1BI: Tensor | None = None, weight_B: Tensor | None = None
    ) -> Tensor:
        """Mean gate weights by owner (1, T, T + 1); see `GatedHeadModel.gate_mass`."""
        gate_TBK = self._gates(x_VBI, shared_input(x_VBI, shared_1BI))
        mass_LTK = mean_gates([gate_TBK], weight_B)
        return mass_by_owner(mass_LTK, self.num_tasks, self.shared_experts.num)

    def _gates(self, x_VBI: Tensor, shared_1BI: Tensor) -> Tensor:
        return torch.softmax(self.gates(x_VBI + shared_1BI), dim=-1)


class Mmoe(GatedHeadModel):
    """MMoE: y_t = h_t(sum_i g_t(x)_i f_i(x)), g_t(x) = softmax(W_gt x).

    Eqs. 6 to 8 of Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts" (KDD 2018).

    One view of every embedding for all tasks. Ours: experts and gates batched; a bias in the gate
    (0 at first), hidden layers in it by choice; numeric columns and sequences as fields.
    """

    task_specific = False
    Config = MmoeConfig
    Head = MmoeHead


class Omoe(GatedHeadModel):
    """OMoE: MMoE with one gate for all tasks, y_t = h_t(sum_i g(x)_i f_i(x)).

    The one-gate model that Ma et al., "Modeling Task Relationships in Multi-task Learning with
    Multi-gate Mixture-of-Experts" (KDD 2018), section 4.2, compare MMoE with. The mix is computed
    once for all towers. Ours: what is ours in `Mmoe`.
    """

    task_specific = False
    Config = OmoeConfig
    Head = OmoeHead


class MeMmoe(GatedHeadModel):
    """ME-MMoE: MMoE on tables per task, to tell the effect of the tables from that of the gates.

    Su et al. (STEM, AAAI 2024) compare with a multi-embedding MMoE and publish nothing of how it is
    built, so this is ours: the experts are divided over the T + 1 views, every gate sees and trains
    all of them, and gate t reads x_t + x_S. One-layer STEM-Net with the same weights has the same
    outputs and differs by stopping the gradient to other tasks' experts.
    """

    task_specific = True
    Config = MeMmoeConfig
    Head = MeMmoeHead
