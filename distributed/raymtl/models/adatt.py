"""AdaTT-sp: levels of task experts, fused over all tasks beside a task's own."""

from math import sqrt
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
    mean_gates,
)
from raymtl.models.head_model import GatedHeadModel
from raymtl.models.mixing import mix


class AdattConfig(Section):
    name: Literal["adatt"] = "adatt"
    num_layers: PositiveInt = 2
    """L, the paper's levels; 2 is ours."""
    num_specific_experts: PositiveInt = 2
    """Experts of each task in every layer; 2 in the example of the authors' code."""
    expert_hidden_units: Annotated[HiddenUnits, Field(min_length=1)] = (512,)
    """Widths of every expert; the last one is the width of a layer's output. Ours."""
    gate_hidden_units: HiddenUnits = ()
    """Widths of every gate before its linear output; empty is the paper's linear gate."""
    tower_hidden_units: HiddenUnits = (128, 64)
    """Widths of each task's tower before its linear output; as for the other baselines."""
    activation: Activation = "relu"
    """Applied after every hidden layer of experts, gates and towers."""
    dropout: Dropout = 0.0
    """Dropout after every hidden layer, gates' too, while training."""


class AdattHead(nn.Module):
    """Layers of fusion and a tower per task; nothing reads a shared vector."""

    def __init__(
        self,
        config: AdattConfig,
        num_tasks: int,
        in_features: int,
        given: tuple[int | None, ...] = (),
    ):
        super().__init__()
        self.num_tasks = num_tasks
        width = config.expert_hidden_units[-1]
        self.layers = nn.ModuleList(
            AdattLayer(config, num_tasks, width if n else in_features)
            for n in range(config.num_layers)
        )
        style = {"activation": config.activation, "dropout": config.dropout}
        self.towers = BankOfMLPs(num_tasks, width, config.tower_hidden_units, 1, **style)

    def forward(self, x_VBI: Tensor, shared_1BI: Tensor | None = None) -> Tensor:
        """Returns logits_BT; the shared vector is not read."""
        x_TBH, _ = self._run(x_VBI)
        return self.towers(x_TBH).squeeze(-1).t()

    def gate_sources(self, task_names: tuple[str, ...]) -> tuple[str, ...]:
        """The columns of `gate_mass`."""
        return task_names

    @torch.no_grad()
    def gate_mass(
        self, x_VBI: Tensor, shared_1BI: Tensor | None = None, weight_B: Tensor | None = None
    ) -> Tensor:
        """Mean gate weights by owner (L, T, T), without the own experts' sum beside the gate.

        See `GatedHeadModel.gate_mass`.
        """
        _, gates = self._run(x_VBI)
        return mean_gates(gates, weight_B).unflatten(-1, (self.num_tasks, -1)).sum(-1)

    def _run(self, x_VBI: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The tasks' last outputs (T, B, H) and every layer's gates (T, B, E)."""
        gates = []
        for layer in self.layers:
            x_VBI, gate_TBE = layer(x_VBI)
            gates.append(gate_TBE)
        return x_VBI, gates


class AdattLayer(nn.Module):
    """One level: a gated sum over all tasks' experts, plus a weighted sum of the task's own."""

    def __init__(self, config: AdattConfig, num_tasks: int, in_features: int):
        super().__init__()
        style = {"activation": config.activation, "dropout": config.dropout}
        num_own = config.num_specific_experts
        num, gates = num_tasks * num_own, config.gate_hidden_units
        self.experts = BankOfMLPs(num, in_features, config.expert_hidden_units, **style)
        """Task by task."""
        self.gates = BankOfMLPs(num_tasks, in_features, gates, num, **style)
        weight = torch.empty(num_tasks, num_own).uniform_(-sqrt(1 / num_own), sqrt(1 / num_own))
        self.own_weight_TK = nn.Parameter(weight) if num_own > 1 else None
        """Null with one expert per task, which then counts 1."""

    def forward(self, x_VBI: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the tasks' outputs (T, B, H) and gates (T, B, E)."""
        experts_EBH = self.experts(x_VBI)
        gate_TBE = torch.softmax(self.gates(x_VBI), dim=-1)
        fused_TBH = mix(gate_TBE, experts_EBH)
        if self.own_weight_TK is None:
            return fused_TBH + experts_EBH, gate_TBE
        own_TKBH = experts_EBH.unflatten(0, self.own_weight_TK.shape)
        own_TBH = torch.einsum("tk,tkbh->tbh", self.own_weight_TK, own_TKBH)
        return fused_TBH + own_TBH, gate_TBE


class Adatt(GatedHeadModel):
    """AdaTT-sp: in every layer, task t fuses all tasks' experts and keeps its own beside them.

        e_tk = MLP_tk(x_t)
        x_t <- sum_jk softmax(W_t x_t)_jk e_jk + sum_k v_tk e_tk
        y_t  = h_t(x_t of the last layer)

    Li et al., "AdaTT: Adaptive Task-to-Task Fusion Network for Multitask Learning in
    Recommendations" (KDD 2023), after the authors' code (facebookresearch/AdaTT, AdaTTSp): v starts
    uniform within 1 / sqrt(K), and with one expert per task it is fixed at 1.

    One view of every embedding for all tasks, so all x_t start as one x. Ours: experts and gates
    batched and started as in the other models here; hidden layers in gates by choice; numeric
    columns and sequences as fields.
    """

    task_specific = False
    Config = AdattConfig
    Head = AdattHead
