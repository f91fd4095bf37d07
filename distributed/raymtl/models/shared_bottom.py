"""Shared-Bottom: one representation for all tasks, one tower each."""

from typing import Literal

from torch import Tensor, nn

from raymtl.batch import Inputs, InputShape
from raymtl.config import Section
from raymtl.models.blocks import Activation, BankOfMLPs, Dropout, FieldStack, HiddenUnits


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


class SharedBottom(nn.Module):
    """Shared-Bottom: y_t = h_t(f(x)).

    Eq. 1 of Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts" (KDD 2018).

    One view of every embedding for all tasks. Ours: numeric columns and sequences as fields
    (`FieldStack`).
    """

    task_specific = False
    shared_view = True
    Config = SharedBottomConfig

    def __init__(self, config: SharedBottomConfig, shape: InputShape):
        super().__init__()
        self.fields = FieldStack(shape)
        bottom, width = config.bottom_hidden_units, self.fields.out_features
        style = {"activation": config.activation, "dropout": config.dropout}
        self.bottom = BankOfMLPs(1, width, bottom, **style) if bottom else None
        self.towers = BankOfMLPs(
            shape.num_tasks,
            bottom[-1] if bottom else width,
            config.tower_hidden_units,
            out_features=1,
            **style,
        )

    def forward(self, inputs: Inputs) -> Tensor:
        """Returns logits_BT."""
        x_1BI = self.fields(inputs)
        if self.bottom is not None:
            x_1BI = self.bottom(x_1BI)
        return self.towers(x_1BI).squeeze(-1).t()
