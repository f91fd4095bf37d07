"""A model that fails in the ways a trial can fail, to be registered by a test."""

import os
import signal
from typing import Literal

import torch
from torch import Tensor, nn

from raymtl.batch import Inputs, InputShape
from raymtl.config import Section


class TroubledConfig(Section):
    name: Literal["troubled"] = "troubled"
    trouble: Literal["none", "raise", "nan", "kill", "memory"] = "none"
    bias: float = 0.0


class Troubled(nn.Module):
    """Logistic regression on the numbers, until its trouble begins: at the first training step."""

    task_specific = False
    Config = TroubledConfig

    def __init__(self, config: TroubledConfig, shape: InputShape):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(shape.num_fields * shape.width, shape.num_tasks)
        nn.init.constant_(self.linear.bias, config.bias)

    def forward(self, inputs: Inputs) -> Tensor:
        """Returns logits_BT."""
        logits_BT = self.linear(inputs.views_BVFD[:, 0].flatten(1))
        if self.training:
            match self.config.trouble:
                case "raise":
                    raise KeyError("no such expert")
                case "nan":
                    return logits_BT * float("nan")
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "memory":
                    self.kept = torch.zeros(2**30)  # 4 GiB, more than the trial may take
        return logits_BT
