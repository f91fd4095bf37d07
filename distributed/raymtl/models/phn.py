"""The parallel heterogeneous network that DEPHN and MT-PHN share: experts and towers, no gates.

Kong et al., "DEPHN: Different Expression Parallel Heterogeneous Network using virtual gradient
optimization for Multi-task Learning" (IJCNN 2023, arXiv 2307.12519), sections III-A to III-C.
T tasks, E experts, P mappings, B rows, H an expert's width.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from raymtl.batch import InputShape
from raymtl.config import Section
from raymtl.errors import InputError
from raymtl.models.blocks import Dropout, FieldStack, HiddenUnits
from raymtl.models.interactions import (
    CrossLayers,
    DeepExperts,
    FieldInteraction,
    Residual,
    Selection,
    SoftSelection,
)

Assignment = Literal["d_pub_cf_pri", "all_pub", "d_pri_cf_pub"]
Mapping = Literal["identity", "sin", "cos"]

MAPPINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "sin": torch.sin,
    "cos": torch.cos,
}


class PhnSection(Section):
    """What the network of DEPHN and MT-PHN is asked to be."""

    assignment: Assignment = "d_pub_cf_pri"
    """Which experts the tasks share, Table I of the paper: DNN experts, with cross and field
    interaction experts of each task's own (the paper's choice); all of both kinds; or interaction
    experts shared and DNN experts of each task's own."""
    num_dnn_experts: PositiveInt = 3
    """DNN experts, of all tasks or of each; 3 is read off the paper's figures 2 and 3."""
    num_interaction_experts: PositiveInt = 3
    """Experts of cross layers and field interaction side by side, of each task or of all; 3 is read
    off figure 3."""
    expert_hidden_units: Annotated[HiddenUnits, Field(min_length=1)] = (256, 128)
    """Widths of a DNN expert. Ours: the paper prints none."""
    num_interaction_layers: PositiveInt = 3
    """Layers of an interaction expert, as in the PHN paper. Each costs about (fields * width)^2
    weights per expert."""
    selection: Selection = "gated"
    """Soft selection gating before the experts; `attention` leaves out its gate, `none` all of
    it."""
    attention_heads: PositiveInt = 1
    """Heads of its attention over fields; divides embedding.width. Ours: not printed."""
    residual: Residual = "trainable"
    """Links around expert layers: with trained weights, with weight 1, or absent."""
    output: Literal["sum_logit", "mean_sigmoid"] = "sum_logit"
    """How the shared and the own part of a prediction join. The paper's equation 6 adds two
    sigmoids, which is no probability; its equation 7 is the gradient of one sigmoid of a summed
    logit, `sum_logit`. `mean_sigmoid` is the mean of the two; regression tasks add in both."""
    dropout: Dropout = 0.0
    """Dropout after every hidden layer of the DNN experts, while training. Ours."""


class DnnBranch(nn.Module):
    """DNN experts behind one soft selection of the fields per owner."""

    def __init__(self, config: PhnSection, num_owners: int, fields: FieldStack):
        super().__init__()
        self.selection = _selection(config, num_owners, fields)
        shape = (num_owners, config.num_dnn_experts, fields.out_features)
        units = config.expert_hidden_units
        self.experts = DeepExperts(shape, units, config.residual, config.dropout)
        self.num_experts, self.out_features = config.num_dnn_experts, self.experts.out_features

    def forward(self, fields_BFD: Tensor) -> Tensor:
        """Returns (O, E, B, H)."""
        return self.experts(self.selection(fields_BFD).flatten(2))


class InteractionBranch(nn.Module):
    """CL&FI experts: cross layers and field interaction, each behind a selection of its own.

    An expert gives both outputs side by side, 2 * F * D wide (ours: how they join is not written).
    """

    def __init__(self, config: PhnSection, num_owners: int, fields: FieldStack):
        super().__init__()
        self.cross_selection = _selection(config, num_owners, fields)
        self.field_selection = _selection(config, num_owners, fields)
        num, layers = config.num_interaction_experts, config.num_interaction_layers
        flat = (num_owners, num, fields.out_features)
        self.cross = CrossLayers(flat, layers, config.residual)
        by_field = (num_owners, num, fields.num_fields)
        self.field = FieldInteraction(by_field, layers, config.residual)
        self.num_experts, self.out_features = num, 2 * fields.out_features

    def forward(self, fields_BFD: Tensor) -> Tensor:
        """Returns (O, E, B, 2 F D)."""
        crossed_OEBI = self.cross(self.cross_selection(fields_BFD).flatten(2))
        mixed_OEBFD = self.field(self.field_selection(fields_BFD))
        return torch.cat([crossed_OEBI, mixed_OEBFD.flatten(3)], dim=-1)


class Phn(nn.Module):
    """Fields to logits, given the gates of the shared experts; equations 4 to 6.

        shared_t = sum_kp W_t,kp . f_p(e_k) G_t,kp + b_t       own_t = sum_k' W_t,k' . e_t,k' + b'_t

    A task's tower is one linear layer: a weight vector per expert (and mapping). Weights start as
    xavier_normal_ of each vector, biases as 0 (ours).
    """

    additive_T: Tensor

    def __init__(self, config: PhnSection, shape: InputShape, mappings: tuple[Mapping, ...]):
        super().__init__()
        self.fields = FieldStack(shape)
        _require_heads(config, shape.width)
        num_tasks = shape.num_tasks
        dnn_owners = num_tasks if config.assignment == "d_pri_cf_pub" else 1
        interaction_owners = num_tasks if config.assignment == "d_pub_cf_pri" else 1
        self.dnn = DnnBranch(config, dnn_owners, self.fields)
        self.interaction = InteractionBranch(config, interaction_owners, self.fields)
        self.branch_is_shared = {
            "dnn": config.assignment != "d_pri_cf_pub",
            "interaction": config.assignment != "d_pub_cf_pri",
        }
        self.mappings = mappings
        self.towers = nn.ParameterDict(
            {name: self._tower(name, num_tasks) for name in self.branch_is_shared}
        )
        """(T, E, P, H) where the experts are shared, (T, E, H) where they are each task's own."""
        self.shared_bias_T = nn.Parameter(torch.zeros(num_tasks))
        has_own = not all(self.branch_is_shared.values())
        self.own_bias_T = nn.Parameter(torch.zeros(num_tasks)) if has_own else None
        additive = [config.output == "sum_logit" or kind == "regression" for kind in shape.kinds]
        additive = additive or [config.output == "sum_logit"] * num_tasks
        self.all_additive = all(additive)
        self.register_buffer("additive_T", torch.tensor(additive), persistent=False)

    @property
    def shared_names(self) -> tuple[str, ...]:
        """The shared experts in the gates' order: dnn_1, .., interaction_1, .."""
        return self._names(shared=True)

    @property
    def names(self) -> tuple[str, ...]:
        """All experts that a task reads, the shared ones first."""
        return self._names(shared=True) + self._names(shared=False)

    def forward(self, x_1BI: Tensor, gate_TEPB: Tensor) -> Tensor:
        """Logits of `fields`' vector under the gates.

        Args:
            gate_TEPB: of the shared experts; may be 1 wide in P and in B.

        Returns:
            logits_BT.
        """
        shared_TEB, own_TEB = self.contributions(x_1BI, gate_TEPB)
        shared_TB = shared_TEB.sum(dim=1) + self.shared_bias_T[:, None]
        if self.own_bias_T is None:
            return shared_TB.t()
        own_TB = own_TEB.sum(dim=1) + self.own_bias_T[:, None]
        total_TB = shared_TB + own_TB
        if self.all_additive:
            return total_TB.t()
        mean_TB = logit_of_mean(shared_TB, own_TB)
        return torch.where(self.additive_T[:, None], total_TB, mean_TB).t()

    def contributions(self, x_1BI: Tensor, gate_TEPB: Tensor) -> tuple[Tensor, Tensor]:
        """What each expert adds to a task's logit: shared experts (T, E, B), own ones (T, E', B).

        E' is 0 where all experts are shared.
        """
        fields_BFD = x_1BI[0].unflatten(-1, (self.fields.num_fields, self.fields.width))
        shared, own = [], [x_1BI.new_zeros(len(self.shared_bias_T), 0, fields_BFD.shape[0])]
        for name, is_shared in self.branch_is_shared.items():
            out_OEBH = self._branch(name)(fields_BFD)
            if is_shared:
                mapped_EPBH = torch.stack([MAPPINGS[m](out_OEBH[0]) for m in self.mappings], dim=1)
                shared.append(torch.einsum("epbh,teph->tepb", mapped_EPBH, self.towers[name]))
            else:
                own.append(torch.einsum("tebh,teh->teb", out_OEBH, self.towers[name]))
        return (torch.cat(shared, dim=1) * gate_TEPB).sum(dim=2), torch.cat(own, dim=1)

    def _branch(self, name: str) -> DnnBranch | InteractionBranch:
        return self.dnn if name == "dnn" else self.interaction

    def _tower(self, name: str, num_tasks: int) -> Tensor:
        branch = self._branch(name)
        mapped = (len(self.mappings),) if self.branch_is_shared[name] else ()
        std = (2 / (branch.out_features + 1)) ** 0.5
        return torch.randn(num_tasks, branch.num_experts, *mapped, branch.out_features) * std

    def _names(self, shared: bool) -> tuple[str, ...]:
        branches = [
            name for name, is_shared in self.branch_is_shared.items() if is_shared == shared
        ]
        return tuple(
            f"{name}_{n + 1}" for name in branches for n in range(self._branch(name).num_experts)
        )


def logit_of_mean(first: Tensor, second: Tensor) -> Tensor:
    """logit((sigmoid(a) + sigmoid(b)) / 2), from log-sigmoids: finite wherever a and b are."""
    a, b = first.float(), second.float()
    log_p = torch.logaddexp(F.logsigmoid(a), F.logsigmoid(b))
    log_not_p = torch.logaddexp(F.logsigmoid(-a), F.logsigmoid(-b))
    return log_p - log_not_p


def activation_shares(contributions_TEB: Tensor, weight_B: Tensor | None) -> Tensor:
    """Each expert's share of a task's |contribution| to the logit, mean over rows, (T, E).

    The quantity of the paper's Fig. 3(b). Rows of the result sum to 1 (to 0 without rows).
    """
    size_TEB = contributions_TEB.abs()
    size_TE = size_TEB.sum(-1) if weight_B is None else size_TEB @ weight_B.to(size_TEB.dtype)
    tiny = torch.finfo(size_TE.dtype).tiny
    return size_TE / size_TE.sum(dim=1, keepdim=True).clamp(min=tiny)


def _selection(config: PhnSection, num_owners: int, fields: FieldStack) -> SoftSelection:
    heads, mode = config.attention_heads, config.selection
    return SoftSelection(num_owners, fields.num_fields, fields.width, heads, mode)


def _require_heads(config: PhnSection, width: int) -> None:
    if config.selection != "none" and width % config.attention_heads:
        raise InputError(
            "the heads of the attention over fields do not divide the embedding width",
            f"model.attention_heads = {config.attention_heads}, embedding.width = {width}",
            "a divisor of embedding.width",
            "set model.attention_heads to 1, or change embedding.width",
        )
