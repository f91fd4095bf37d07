"""Shared-Bottom: one representation for all tasks, one tower each."""

from typing import Literal

from torch import Tensor, nn

from raymtl.config import Section
from raymtl.models.blocks import Activation, BankOfMLPs, Dropout, HiddenUnits
from raymtl.models.head_model import HeadModel


class SharedBottomConfig(Section):
    name: Literal["shared_bottom"] = "shared_bottom"
    bottom_hidden_units: HiddenUnits = (512, 512, 512)
    """Widths of the bottom all tasks share; these are the official STEM repository's for this
    baseline. Empty means no bottom: the towers read the embeddings."""
    tower_hidden_units: HiddenUnits = (128, 128)
    """Widths of each task's tower before its linear output, as there."""
    activation: Activation = "relu"
    """Applied after every hidden layer."""
    dropout: Dropout = 0.0
    """Dropout after every hidden layer, while training."""


class SharedBottomHead(nn.Module):
    """y_t = h_t(f(x)); with one vector per task y_t = h_t(f(x_t)), which is ours."""

    def __init__(
        self,
        config: SharedBottomConfig,
        num_tasks: int,
        in_features: int,
        given: tuple[int | None, ...] = (),
    ):
        super().__init__()
        units = config.bottom_hidden_units
        style = {"activation": config.activation, "dropout": config.dropout}
        self.bottom = BankOfMLPs(1, in_features, units, **style) if units else None
        width = units[-1] if units else in_features
        self.towers = BankOfMLPs(num_tasks, width, config.tower_hidden_units, 1, **style)

    def forward(self, x_VBI: Tensor, shared_1BI: Tensor | None = None) -> Tensor:
        """Returns logits_BT; the shared vector is not read."""
        if self.bottom is not None:
            x_VBI = self.bottom.on_each(x_VBI).squeeze(1)
        return self.towers(x_VBI).squeeze(-1).t()


class SharedBottom(HeadModel):
    """Shared-Bottom: y_t = h_t(f(x)).

    Eq. 1 of Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts" (KDD 2018).

    One view of every embedding for all tasks. Ours: numeric columns and sequences as fields
    (`FieldStack`).
    """

    task_specific = False
    Config = SharedBottomConfig
    Head = SharedBottomHead
