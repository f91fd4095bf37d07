"""CGC and PLE: experts of each task beside shared ones, in one layer or several; with ME-PLE."""

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
    shared_input,
)
from raymtl.models.head_model import GatedHeadModel
from raymtl.models.mixing import mix


class _ExtractionSection(Section):
    num_specific_experts: PositiveInt = 1
    """Experts of each task, in every layer; 1 in the official STEM repository's PLE."""
    num_shared_experts: PositiveInt = 8
    """Experts all tasks share, in every layer; 8 there."""
    expert_hidden_units: Annotated[HiddenUnits, Field(min_length=1)] = (512, 512, 512)
    """Widths of every expert, as there; the last one is the width of a layer's output."""
    gate_hidden_units: HiddenUnits = ()
    """Widths of every gate before its linear output; empty is the paper's linear gate."""
    tower_hidden_units: HiddenUnits = (128, 64)
    """Widths of each task's tower before its linear output, as in the STEM repository."""
    activation: Activation = "relu"
    """Applied after every hidden layer of experts, gates and towers."""
    dropout: Dropout = 0.0
    """Dropout after every hidden layer, gates' too, while training."""


class CgcConfig(_ExtractionSection):
    name: Literal["cgc"] = "cgc"


class PleConfig(_ExtractionSection):
    name: Literal["ple"] = "ple"
    num_layers: Annotated[int, Field(ge=2)] = 2
    """Layers of experts and gates; 2 in the paper. One layer is the model `cgc`."""
    expert_hidden_units: Annotated[HiddenUnits, Field(min_length=1)] = (512,)
    """Widths of every expert: one hidden layer, as in the paper; the width is ours."""


class MePleConfig(_ExtractionSection):
    name: Literal["me_ple"] = "me_ple"
    num_layers: PositiveInt = 1
    """Layers of experts and gates; STEM's default."""
    gate_hidden_units: HiddenUnits = (128, 64)
    """Widths of every gate before its linear output; STEM's default, so that the two differ only
    in the experts a gate sees."""


class PleHead(nn.Module):
    """Layers of gated experts and a tower per task.

    The tasks' streams start as x_VBI, the shared one as `shared_1BI`.
    """

    gate_reads_shared = False
    """Whether a task's gate reads x_t + x_S instead of x_t."""

    def __init__(
        self,
        config: CgcConfig | PleConfig | MePleConfig,
        num_tasks: int,
        in_features: int,
        given: tuple[int | None, ...] = (),
    ):
        super().__init__()
        num_layers = 1 if isinstance(config, CgcConfig) else config.num_layers
        width = config.expert_hidden_units[-1]
        self.num_specific_experts = config.num_specific_experts
        self.layers = nn.ModuleList(
            PleLayer(config, num_tasks, width if n else in_features, last=n == num_layers - 1)
            for n in range(num_layers)
        )
        style = {"activation": config.activation, "dropout": config.dropout}
        self.towers = BankOfMLPs(num_tasks, width, config.tower_hidden_units, 1, **style)

    def forward(self, x_VBI: Tensor, shared_1BI: Tensor | None = None) -> Tensor:
        """Returns logits_BT."""
        x_TBH, _ = self._run(x_VBI, shared_1BI)
        return self.towers(x_TBH).squeeze(-1).t()

    def gate_sources(self, task_names: tuple[str, ...]) -> tuple[str, ...]:
        """The columns of `gate_mass`."""
        return (*task_names, "shared")

    @torch.no_grad()
    def gate_mass(
        self, x_VBI: Tensor, shared_1BI: Tensor | None = None, weight_B: Tensor | None = None
    ) -> Tensor:
        """Mean gate weights by owner (L, T, T + 1); see `GatedHeadModel.gate_mass`."""
        _, gates = self._run(x_VBI, shared_1BI)
        mass_LTK = mean_gates(gates, weight_B)
        own_LT = mass_LTK[..., : self.num_specific_experts].sum(-1)
        shared_LT = mass_LTK[..., self.num_specific_experts :].sum(-1)
        return torch.cat([torch.diag_embed(own_LT), shared_LT.unsqueeze(-1)], dim=-1)

    def _run(self, x_VBI: Tensor, shared_1BI: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """The tasks' last outputs (T, B, H) and every layer's task gates (T, B, K)."""
        stream_1BI, gates = shared_input(x_VBI, shared_1BI), []
        for layer in self.layers:
            read_VBI = x_VBI + stream_1BI if self.gate_reads_shared else x_VBI
            x_VBI, stream_1BI, gate_TBK = layer(x_VBI, stream_1BI, read_VBI)
            gates.append(gate_TBK)
        return x_VBI, gates


class MePleHead(PleHead):
    """PleHead whose gates read x_t + x_S."""

    gate_reads_shared = True


class PleLayer(nn.Module):
    """One layer of experts, gates and mixes (the paper's extraction network)."""

    def __init__(
        self,
        config: CgcConfig | PleConfig | MePleConfig,
        num_tasks: int,
        in_features: int,
        last: bool,
    ):
        super().__init__()
        style = {"activation": config.activation, "dropout": config.dropout}
        num_own, num_shared = config.num_specific_experts, config.num_shared_experts
        experts, gates = config.expert_hidden_units, config.gate_hidden_units
        num_specific = num_tasks * num_own
        self.num_tasks = num_tasks
        self.specific_experts = BankOfMLPs(num_specific, in_features, experts, **style)
        """Task by task."""
        self.shared_experts = BankOfMLPs(num_shared, in_features, experts, **style)
        self.gates = BankOfMLPs(num_tasks, in_features, gates, num_own + num_shared, **style)
        num = num_specific + num_shared
        self.shared_gate = None if last else BankOfMLPs(1, in_features, gates, num, **style)

    def forward(
        self, x_VBI: Tensor, shared_1BI: Tensor, read_VBI: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Runs the layer.

        Args:
            read_VBI: what the tasks' gates read.

        Returns:
            The tasks' outputs (T, B, H), the shared one (1, B, H; null after the last layer) and
            the tasks' gates (T, B, K), own experts first.
        """
        specific_EBH, shared_KBH = self.specific_experts(x_VBI), self.shared_experts(shared_1BI)
        gate_TBK = torch.softmax(self.gates(read_VBI), dim=-1)
        own_TKBH = specific_EBH.unflatten(0, (self.num_tasks, -1))
        own_TBK, rest_TBK = gate_TBK.split([own_TKBH.shape[1], len(shared_KBH)], dim=-1)
        out_TBH = torch.einsum("tbk,tkbh->tbh", own_TBK, own_TKBH)
        out_TBH = out_TBH + mix(rest_TBK, shared_KBH)
        if self.shared_gate is None:
            return out_TBH, None, gate_TBK
        # The shared module's gate sees the experts of all tasks, as in the paper.
        gate_1BE = torch.softmax(self.shared_gate(shared_1BI), dim=-1)
        tasks_1BE, shared_1BK = gate_1BE.split([len(specific_EBH), len(shared_KBH)], dim=-1)
        out_1BH = mix(tasks_1BE, specific_EBH) + mix(shared_1BK, shared_KBH)
        return out_TBH, out_1BH, gate_TBK


class Cgc(GatedHeadModel):
    """CGC: one layer of task-specific and shared experts, mixed by a gate per task.

        y_t = h_t(softmax(W_t x) S_t(x)),   S_t = experts of t and the shared ones

    Eqs. 2 to 5 of Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning
    (MTL) Model for Personalized Recommendations" (RecSys 2020).

    One view of every embedding for all tasks. Ours: experts and gates batched; a bias in the gate
    (0 at first), hidden layers in it by choice; numeric columns and sequences as fields.
    """

    task_specific = False
    Config = CgcConfig
    Head = PleHead


class Ple(GatedHeadModel):
    """PLE: layers as in CGC, with a shared module whose gate sees all experts of its layer.

        x_t <- softmax(W_t x_t) S_t      S_t = experts of t on x_t, shared ones on x_S
        x_S <- softmax(W_S x_S) S_S      S_S = experts of all tasks and the shared ones
        y_t  = h_t(x_t of the last layer)

    Eqs. 6 and 7 of Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning
    (MTL) Model for Personalized Recommendations" (RecSys 2020). Their per-task sample spaces
    (eqs. 8 and 9) are unobserved labels here. All streams start as the one view of the embeddings.

    Ours: what is ours in `Cgc`; no shared gate in the last layer, where nothing would read it.
    """

    task_specific = False
    Config = PleConfig
    Head = PleHead


class MePle(GatedHeadModel):
    """ME-PLE: PLE on tables per task, to tell the effect of the tables from that of the gates.

    Su et al. (STEM, AAAI 2024) compare with a multi-embedding PLE and publish nothing of how it is
    built, so this is ours: experts of task t read x_t, shared ones x_S, and gate t reads x_t + x_S.
    STEM-Net differs by its gates' seeing, without training, the other tasks' experts.
    """

    task_specific = True
    Config = MePleConfig
    Head = MePleHead
