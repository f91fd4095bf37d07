"""Single-task models, side by side: every task has its own embeddings and its own MLP."""

from typing import Literal

from torch import Tensor, nn

from raymtl.batch import Inputs, InputShape
from raymtl.config import Section
from raymtl.models.blocks import Activation, BankOfMLPs, Dropout, FieldStack, HiddenUnits


class SingleTaskConfig(Section):
    name: Literal["single_task"] = "single_task"
    hidden_units: HiddenUnits = (512, 512, 512, 128, 128)
    """Widths of each task's MLP before its linear output: the bottom and tower that the official
    STEM repository gives its single-task baseline, one after the other."""
    activation: Activation = "relu"
    """Applied after every hidden layer."""
    dropout: Dropout = 0.0
    """Dropout after every hidden layer, while training."""


class SingleTask(nn.Module):
    """y_t = h_t(x_t) with nothing shared: the baseline that multi-task learning is held against.

    Task t reads view t only, so its loss moves its own MLP and its own tables only. T tasks in one
    schema are T separate single-task runs done in one pass over the log, but for what a run does
    over all its parameters at once: gradient clipping, early stopping, the choice of the best
    checkpoint. Where these matter, train with a schema of one task. Doing all tasks in one
    pass is ours.
    """

    task_specific = True
    shared_view = False
    Config = SingleTaskConfig

    def __init__(self, config: SingleTaskConfig, shape: InputShape):
        super().__init__()
        assert shape.num_views == shape.num_tasks, "single_task has one view per task"
        self.fields = FieldStack(shape)
        self.towers = BankOfMLPs(
            shape.num_tasks,
            self.fields.out_features,
            config.hidden_units,
            out_features=1,
            activation=config.activation,
            dropout=config.dropout,
        )

    def forward(self, inputs: Inputs) -> Tensor:
        """Returns logits_BT."""
        return self.towers(self.fields(inputs)).squeeze(-1).t()
