"""The head of STEM-Net: its config, layers and towers; `stem` has the model."""

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
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
from raymtl.models.mixing import mix, mix_each


class StemConfig(Section):
    name: Literal["stem"] = "stem"
    num_layers: PositiveInt = 1
    """Layers of experts and gates; the authors ship 1."""
    num_specific_experts: PositiveInt = 1
    """K1, experts of each task; the authors ship 1 and search 1, 2, 4."""
    num_shared_experts: PositiveInt = 8
    """K2, experts of all tasks; the authors ship 8 and search 1, 2, 4, 8."""
    expert_hidden_units: Annotated[HiddenUnits, Field(min_length=1)] = (512, 512, 512)
    """Widths of every expert; the last one is the width of a layer's output."""
    gate_hidden_units: HiddenUnits = (128, 64)
    """Widths of every gate's MLP before its linear output; empty gives a linear gate."""
    tower_hidden_units: HiddenUnits = (128, 64)
    """Widths of each task's tower before its linear output."""
    activation: Activation = "relu"
    """Applied after every hidden layer of experts, gates and towers."""
    dropout: Dropout = 0.0
    """Dropout after every hidden layer, gates' too, while training; the authors ship 0."""
    gate_input: Literal["task+shared", "task"] = "task+shared"
    """What a task's gate reads: the sum of the task's and the shared vector, as in the official
    code, or the task's alone, as in the paper's figure."""
    isolation: Literal["official", "strict"] = "official"
    """`official` lets a task's loss reach other tasks' experts and tables through the shared
    stream of two or more layers, as the official code does; `strict` lets it nowhere, at the price
    of running the shared experts of later layers once per task. Equal for one layer, and equal in
    their outputs always (without dropout)."""
    gate_temperature: PositiveFloat = 1.0
    """Gate logits are divided by it before the softmax; above 1 mixes more evenly. Ours."""
    gate_dropout: Dropout = 0.0
    """Chance, while training, that an expert is left out of a row's mix, the others' weights
    growing to sum to 1 again. Ours."""


class StemHead(nn.Module):
    """STEM-Net's layers and towers (`stem.Stem` has the formulas).

    On one vector for all tasks (ours) x_t and x_S are that vector, and a gate reads it twice.
    """

    def __init__(
        self,
        config: StemConfig,
        num_tasks: int,
        in_features: int,
        given: tuple[int | None, ...] = (),
    ):
        super().__init__()
        self.num_tasks = num_tasks
        self.num_shared_experts = config.num_shared_experts
        width = config.expert_hidden_units[-1]
        widths = [in_features] + [width] * (config.num_layers - 1)
        self.layers = nn.ModuleList(
            StemLayer(config, num_tasks, w, last=n == config.num_layers - 1)
            for n, w in enumerate(widths)
        )
        self.towers = BankOfMLPs(
            num_tasks,
            width,
            config.tower_hidden_units,
            out_features=1,
            activation=config.activation,
            dropout=config.dropout,
        )

    def forward(self, x_VBI: Tensor, shared_1BI: Tensor | None = None) -> Tensor:
        """Returns logits_BT."""
        x_TBH, _ = run_layers(self.layers, x_VBI, shared_input(x_VBI, shared_1BI))
        return self.towers(x_TBH).squeeze(-1).t()

    def gate_sources(self, task_names: tuple[str, ...]) -> tuple[str, ...]:
        """The columns of `gate_mass`."""
        return (*task_names, "shared")

    @torch.no_grad()
    def gate_mass(
        self, x_VBI: Tensor, shared_1BI: Tensor | None = None, weight_B: Tensor | None = None
    ) -> Tensor:
        """Mean gate weights by owner (L, T, T + 1); see `stem.Stem.gate_mass`."""
        _, gates = run_layers(self.layers, x_VBI, shared_input(x_VBI, shared_1BI))
        return mass_by_owner(mean_gates(gates, weight_B), self.num_tasks, self.num_shared_experts)


def run_layers(
    layers: Iterable[nn.Module], x_VBI: Tensor, shared_1BI: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The tasks' last outputs (T, B, H) and every layer's task gates (T, B, K)."""
    shared_PBI, gates = shared_1BI, []
    for layer in layers:
        x_VBI, shared_PBI, gate_TBK = layer(x_VBI, shared_PBI)
        gates.append(gate_TBK)
    return x_VBI, gates


class StemLayer(nn.Module):
    """One layer of experts, gates and mixes.

    C copies of the shared stream leave a layer: 1, or T with strict isolation; P copies enter it: 1
    in the first layer, C later. Each copy serves Q queries (gates): copy 0 all T tasks and the
    shared gate, or copy t task t and the shared gate; the last layer has no shared gate.
    """

    live_CQE: Tensor

    def __init__(self, config: StemConfig, num_tasks: int, in_features: int, last: bool):
        super().__init__()
        style = {"activation": config.activation, "dropout": config.dropout}
        num_own, num_shared = config.num_specific_experts, config.num_shared_experts
        num_specific = num_tasks * num_own
        experts, gates = config.expert_hidden_units, config.gate_hidden_units
        num = num_specific + num_shared
        self.specific_experts = BankOfMLPs(num_specific, in_features, experts, **style)
        """Task by task, K1 of each."""
        self.shared_experts = BankOfMLPs(num_shared, in_features, experts, **style)
        self.gates = BankOfMLPs(num_tasks, in_features, gates, num, **style)
        self.shared_gate = None if last else BankOfMLPs(1, in_features, gates, num, **style)
        self.gate_reads_shared = config.gate_input == "task+shared"
        self.temperature, self.gate_dropout = config.gate_temperature, config.gate_dropout
        self.num_copies = num_tasks if config.isolation == "strict" else 1
        live = _live(num_tasks, num_own, self.num_copies, shared_gate=not last)
        self.register_buffer("live_CQE", live, persistent=False)

    def forward(self, x_VBI: Tensor, shared_PBI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the layer.

        Args:
            x_VBI: one input per task, or one for all.

        Returns:
            The tasks' outputs (T, B, H), the shared streams (C, B, H; none after the last layer)
            and the tasks' gates (T, B, K).
        """
        specific_EBH = self.specific_experts(x_VBI)
        shared_PKBH = self.shared_experts.on_each(shared_PBI)
        gate_CQBK = self._gates(x_VBI, shared_PBI)
        out_CQBH = self._mix(gate_CQBK, specific_EBH, shared_PKBH)
        num_own = self.gates.num // self.num_copies
        tasks_TBH = out_CQBH[:, :num_own].flatten(0, 1)
        copies_CBH = out_CQBH[:, num_own:].flatten(0, 1)
        return tasks_TBH, copies_CBH, gate_CQBK[:, :num_own].flatten(0, 1)

    def _gates(self, x_VBI: Tensor, shared_PBI: Tensor) -> Tensor:
        read_VBI = x_VBI + shared_PBI if self.gate_reads_shared else x_VBI
        logits_CQBK = self.gates(read_VBI).unflatten(0, (self.num_copies, -1))
        if self.shared_gate is not None:
            shared_PQBK = self.shared_gate.on_each(shared_PBI)
            shared_CQBK = shared_PQBK.expand(self.num_copies, -1, -1, -1)
            logits_CQBK = torch.cat([logits_CQBK, shared_CQBK], dim=1)
        if self.training and self.gate_dropout > 0:
            logits_CQBK = _drop_experts(logits_CQBK, self.gate_dropout)
        return torch.softmax(logits_CQBK / self.temperature, dim=-1)

    def _mix(self, gate_CQBK: Tensor, specific_EBH: Tensor, shared_PKBH: Tensor) -> Tensor:
        """Gated sums with the experts a query may not train detached; (C, Q, B, H)."""
        sizes = [len(specific_EBH), shared_PKBH.shape[1]]
        gate_RBE, gate_RBK = gate_CQBK.flatten(0, 1).split(sizes, dim=-1)
        specific_RBH = mix(gate_RBE, specific_EBH, self.live_CQE.flatten(0, 1))
        # One copy may serve the queries of all: before the first layer the streams are the same.
        gates_PQBK = gate_RBK.chunk(len(shared_PKBH))
        shared_RBH = mix_each(gates_PQBK, shared_PKBH)
        return (specific_RBH + shared_RBH).unflatten(0, gate_CQBK.shape[:2])


def _live(num_tasks: int, num_own: int, num_copies: int, shared_gate: bool) -> Tensor:
    """live_CQE, 1 where a query may train a specific expert, else 0."""
    own_TE = torch.eye(num_tasks).repeat_interleave(num_own, dim=1)
    own_CQE = own_TE.unflatten(0, (num_copies, -1))
    if not shared_gate:
        return own_CQE
    # The shared gate of a copy trains whatever the tasks served by that copy may train.
    return torch.cat([own_CQE, own_CQE.sum(dim=1, keepdim=True)], dim=1)


def _drop_experts(logits: Tensor, chance: float) -> Tensor:
    """Takes experts out of each row's softmax; a row that would lose all keeps all."""
    dropped = torch.rand_like(logits) < chance
    dropped &= ~dropped.all(dim=-1, keepdim=True)
    return logits.masked_fill(dropped, -torch.inf)
