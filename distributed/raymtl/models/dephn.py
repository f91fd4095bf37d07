"""DEPHN: shared experts under explicit mappings, one trained number per gate, a virtual gradient.

MT-PHN, its variant with a gate that reads the input, stands beside it.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raymtl.batch import Batch, Inputs, InputShape
from raymtl.config import DenseOptimizerSection
from raymtl.models.blocks import BankOfMLPs
from raymtl.models.phn import Mapping, Phn, PhnSection, activation_shares
from raymtl.models.virtual_gradient import (
    SUMS_PER_PAIR,
    Correlation,
    Gamma,
    Mode,
    absolute_correlation,
    label_sums,
    virtual_gate,
)


class DephnConfig(PhnSection):
    name: Literal["dephn"] = "dephn"
    mappings: Annotated[tuple[Mapping, ...], Field(min_length=1)] = ("identity", "sin")
    """Functions of the shared experts' outputs, each gated for itself. The paper names a raw and a
    trigonometric mapping and prints no formula; sin is ours, after its artificial labels."""
    virtual_gradient: Mode = "straight_through"
    """`straight_through` multiplies a gate's gradient by the coefficient and nothing else, equation
    8. `ratio` is the paper's sentence on its code taken literally, which is something else (see
    `virtual_gate`). `none` is a plain gate."""
    gamma: Gamma = "add_sqrt"
    """Coefficient of label correlation x and gate difference y; the paper's choice of its eight.
    The `add_*` are large where both are high or both low, as the paper intends; `mul_*` are as
    large where one is high and the other low."""
    correlation: Correlation = "pearson"
    """Of two tasks' labels in the global batch, in absolute value; the paper's choice."""
    gate_optimizer: DenseOptimizerSection | None = DenseOptimizerSection(name="sgd", lr=0.1)
    """What moves the gates; null gives them to optimizer.dense. Adam divides a gradient by its own
    size, so under Adam a constant coefficient cancels and only its changes from step to step act;
    SGD steps by equation 8 as written. Ours: the paper names no optimizer; at 0.1 the gates moved
    about as far as with Adam at 1e-3 on a small generated log, and no more was tuned. The
    coefficient is near 2 where labels hardly correlate and gates are equal: hold a gain against
    `virtual_gradient: none` with twice the rate."""


class Dephn(nn.Module):
    """DEPHN: a gate's number moves by how alike the tasks' labels and gates are.

    Kong et al., "DEPHN: Different Expression Parallel Heterogeneous Network using virtual gradient
    optimization for Multi-task Learning" (IJCNN 2023, arXiv 2307.12519):

        y_t = sigmoid( sum_k sum_p W_t,kp . f_p(e_k) G_t,kp  +  sum_k' W_t,k' . e_t,k'  + biases )
        dL_t/dG_t,kp = (its plain gradient) * prod over j != t of gamma(|corr(Y_j, Y_t)|,
                                                                   min(1, |G_t,kp - G_j,kp|))

    e_k are DNN experts that the tasks share, e_t,k' cross and field interaction experts of task t
    (`assignment` changes that), each behind soft selection gating (`interactions`); f_p are the
    mappings. G is a parameter, the same for every row. Correlations are of the global batch, from
    `statistics` summed over ranks; until there are any, gates are plain.

    Ours, where the papers print nothing: the mappings, gates that start at 1 / E, how cross and
    field interaction join, the residual links' form, all sizes, the gates' own optimizer; and that
    the two parts' logits are summed (`output`). One view of every embedding for all tasks.
    """

    task_specific = False
    shared_view = True
    whole_sequences = False
    Config = DephnConfig

    def __init__(self, config: DephnConfig, shape: InputShape):
        super().__init__()
        self.config = config
        self.network = Phn(config, shape, config.mappings)
        self.gate_sources = self.network.names
        num_shared = len(self.network.shared_names)
        size = (shape.num_tasks, num_shared, len(config.mappings))
        self.gates = nn.Parameter(torch.full(size, 1 / num_shared))
        """(T, E, P)."""
        pairs = shape.num_tasks**2 if config.virtual_gradient != "none" else 0
        self.num_statistics = SUMS_PER_PAIR * pairs
        self.correlation_TT: Tensor | None = None
        """Of the labels of the step at hand; null before the first."""

    def forward(self, inputs: Inputs) -> Tensor:
        """Returns logits_BT."""
        return self.network(self.network.fields(inputs), self._gate_TEP1())

    def statistics(self, batch: Batch) -> Tensor:
        """This rank's sums for the labels' correlations, float64 (num_statistics,)."""
        sums = label_sums(batch)
        return sums[: self.num_statistics]

    def take_statistics(self, total: Tensor) -> None:
        """Takes the sums over all ranks for the forward that is to follow."""
        if self.num_statistics:
            kind = self.config.correlation
            self.correlation_TT = absolute_correlation(total, kind)

    def optimizer_groups(self) -> list[tuple[list[str], DenseOptimizerSection]]:
        """The gates, unless `gate_optimizer` is null."""
        section = self.config.gate_optimizer
        return [] if section is None else [(["gates"], section)]

    @torch.no_grad()
    def gate_mass(self, inputs: Inputs, weight_B: Tensor | None = None) -> Tensor:
        """Each expert's share of |contribution| to a task's logit, (1, T, E), as `gate_sources`."""
        x_1BI = self.network.fields(inputs)
        parts = self.network.contributions(x_1BI, self._gate_TEP1())
        return activation_shares(torch.cat(parts, dim=1), weight_B).unsqueeze(0)

    def _gate_TEP1(self) -> Tensor:
        gates, correlation_TT = self.gates, self.correlation_TT
        if self.training and torch.is_grad_enabled() and correlation_TT is not None:
            c = self.config
            gates = virtual_gate(gates, correlation_TT, c.gamma, c.virtual_gradient)
        return gates.unsqueeze(-1)


class MtPhnConfig(PhnSection):
    name: Literal["mt_phn"] = "mt_phn"


class MtPhn(nn.Module):
    """MT-PHN: DEPHN's network under MMoE's gate, without explicit mapping and virtual gradient.

    Kong et al., DEPHN (IJCNN 2023, arXiv 2307.12519), section III-A and Table I:

        y_t = sigmoid( sum_k softmax(A_t x + a_t)_k W_t,k . e_k  +  sum_k' W_t,k' . e_t,k'  + .. )

    with MMoE's gate (Ma et al., KDD 2018) on x, the flat vector of all fields. Ours: that the gate
    reads x before soft selection, that each expert keeps its own tower weights as in DEPHN, and
    all that `Dephn` names as ours.
    """

    task_specific = False
    shared_view = True
    whole_sequences = False
    Config = MtPhnConfig

    def __init__(self, config: MtPhnConfig, shape: InputShape):
        super().__init__()
        self.network = Phn(config, shape, ("identity",))
        self.gate_sources = self.network.names
        num_shared = len(self.network.shared_names)
        in_features = self.network.fields.out_features
        self.gates = BankOfMLPs(shape.num_tasks, in_features, (), num_shared)

    def forward(self, inputs: Inputs) -> Tensor:
        """Returns logits_BT."""
        x_1BI = self.network.fields(inputs)
        return self.network(x_1BI, self._gate_TE1B(x_1BI))

    @torch.no_grad()
    def gate_mass(self, inputs: Inputs, weight_B: Tensor | None = None) -> Tensor:
        """Each expert's share of |contribution| to a task's logit, (1, T, E), as `gate_sources`."""
        x_1BI = self.network.fields(inputs)
        parts = self.network.contributions(x_1BI, self._gate_TE1B(x_1BI))
        return activation_shares(torch.cat(parts, dim=1), weight_B).unsqueeze(0)

    def _gate_TE1B(self, x_1BI: Tensor) -> Tensor:
        return torch.softmax(self.gates(x_1BI), dim=-1).transpose(1, 2).unsqueeze(2)
