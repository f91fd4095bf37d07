"""A model that is not built in, for tests of registering one."""

from typing import Literal

from torch import Tensor, nn

from raymtl.batch import Inputs, InputShape
from raymtl.config import Section
from raymtl.models.blocks import FieldStack


class LinearConfig(Section):
    name: Literal["linear"] = "linear"


class Linear(nn.Module):
    """One linear layer on the shared vectors."""

    task_specific = False
    Config = LinearConfig

    def __init__(self, config: LinearConfig, shape: InputShape):
        super().__init__()
        self.fields = FieldStack(shape)
        self.heads = nn.Linear(self.fields.out_features, shape.num_tasks)

    def forward(self, inputs: Inputs) -> Tensor:
        return self.heads(self.fields(inputs)[0])
