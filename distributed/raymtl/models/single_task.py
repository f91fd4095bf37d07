"""Single-task models, side by side: every task has its own embeddings and its own MLP."""

from typing import Literal

from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from raymtl.batch import Inputs, InputShape
from raymtl.config import Section
from raymtl.errors import InputError
from raymtl.models.blocks import Activation, BankOfMLPs, Dropout, FieldStack, HiddenUnits
from raymtl.models.cross import CrossNetwork, FintInteraction
from raymtl.models.head_model import HeadModel


class SingleTaskHeadConfig(Section):
    name: Literal["single_task"] = "single_task"
    hidden_units: HiddenUnits = (512, 512, 512, 128, 128)
    """Widths of each task's MLP before its linear output: the bottom and tower that the official
    STEM repository gives its single-task baseline, one after the other."""
    activation: Activation = "relu"
    """Applied after every hidden layer."""
    dropout: Dropout = 0.0
    """Dropout after every hidden layer, while training."""


class SingleTaskConfig(SingleTaskHeadConfig):
    bottom: Literal["dnn", "dcn_v2", "fint"] = "dnn"
    """What each task's embeddings go through before its MLP: nothing, DCN-V2's cross network, or
    FINT's field interaction."""
    num_bottom_layers: PositiveInt | None = None
    """Layers of dcn_v2 or fint; null means 1, as public code ships FINT (for dcn_v2 it is ours)."""

    @model_validator(mode="after")
    def _a_dnn_has_no_bottom_layers(self) -> "SingleTaskConfig":
        if self.bottom == "dnn" and self.num_bottom_layers is not None:
            raise InputError(
                "bottom: dnn has no layers below its MLP",
                f"model.num_bottom_layers = {self.num_bottom_layers}",
                "it with bottom: dcn_v2 or fint only",
                "remove it, or choose such a bottom",
            )
        return self


class SingleTaskHead(nn.Module):
    """y_t = h_t(x_t), or h_t(x) on one vector for all tasks."""

    def __init__(
        self,
        config: SingleTaskHeadConfig,
        num_tasks: int,
        in_features: int,
        given: tuple[int | None, ...] = (),
    ):
        super().__init__()
        self.towers = BankOfMLPs(
            num_tasks,
            in_features,
            config.hidden_units,
            out_features=1,
            activation=config.activation,
            dropout=config.dropout,
        )

    def forward(self, x_VBI: Tensor, shared_1BI: Tensor | None = None) -> Tensor:
        """Returns logits_BT; the shared vector is not read."""
        return self.towers(x_VBI).squeeze(-1).t()


class SingleTask(HeadModel):
    """y_t = h_t(x_t) with nothing shared: the baseline that multi-task learning is held against.

    Task t reads view t only, so its loss moves its own MLP and its own tables only. T tasks in one
    schema are T separate single-task runs done in one pass over the log, but for what a run does
    over all its parameters at once: gradient clipping, early stopping, the choice of the best
    checkpoint. Where these matter, train with a schema of one task. With `bottom` it is DCN-V2
    (stacked: crosses, then the MLP) or FINT; see `cross`. Doing all tasks in one pass is ours.
    """

    task_specific = True
    shared_view = False
    Config = SingleTaskConfig
    Head = SingleTaskHead

    def __init__(self, config: SingleTaskConfig, shape: InputShape):
        super().__init__(config, shape)
        self.bottom = _bottom(config, shape.num_tasks, self.fields)

    def forward(self, inputs: Inputs) -> Tensor:
        """Returns logits_BT."""
        x_TBI = self.fields(inputs)
        return self.head(x_TBI if self.bottom is None else self.bottom(x_TBI))


def _bottom(config: SingleTaskConfig, num_tasks: int, fields: FieldStack) -> nn.Module | None:
    num_layers = config.num_bottom_layers or 1
    if config.bottom == "dcn_v2":
        return CrossNetwork(num_tasks, fields.out_features, num_layers)
    if config.bottom == "fint":
        return FintInteraction(num_tasks, fields.num_fields, num_layers)
    return None
