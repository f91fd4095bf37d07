"""ESMM: a task's probability is the product of conditional ones along its chain."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raymtl.batch import InputShape
from raymtl.config import Section
from raymtl.models import chains
from raymtl.models.blocks import Activation, BankOfMLPs, Dropout, HiddenUnits
from raymtl.models.head_model import HeadModel


class EsmmConfig(Section):
    name: Literal["esmm"] = "esmm"
    tower_hidden_units: Annotated[HiddenUnits, Field(min_length=1)] = (360, 200, 80)
    """Widths of each task's MLP before its linear output; the paper's 360 x 200 x 80."""
    activation: Activation = "relu"
    """Applied after every hidden layer; ReLU in the paper."""
    dropout: Dropout = 0.0
    """Dropout after every hidden layer, while training."""


class EsmmHead(nn.Module):
    """p_t = sigmoid(h_t(x)) p_s for task t after task s, p_t = sigmoid(h_t(x)) for a first task.

    With one vector per task tower t reads x_t, which is ours.
    """

    chained = True
    """Relates tasks as events: none that follows another may be a regression."""

    def __init__(
        self,
        config: EsmmConfig,
        num_tasks: int,
        in_features: int,
        given: tuple[int | None, ...] = (),
    ):
        super().__init__()
        self.links = chains.links(num_tasks, given)
        style = {"activation": config.activation, "dropout": config.dropout}
        self.towers = BankOfMLPs(num_tasks, in_features, config.tower_hidden_units, 1, **style)

    def forward(self, x_VBI: Tensor, shared_1BI: Tensor | None = None) -> Tensor:
        """Returns logits_BT of the products; the shared vector is not read."""
        logits_T = list(self.conditional(x_VBI).float().unbind(1))
        for before, task in self.links:
            logits_T[task] = _logit_of_product(logits_T[before], logits_T[task])
        return torch.stack(logits_T, dim=1)

    def conditional(self, x_VBI: Tensor) -> Tensor:
        """Logits_BT of each task given that the task before it is positive (pCVR)."""
        return self.towers(x_VBI).squeeze(-1).t()


class Esmm(HeadModel):
    """ESMM: pCTCVR = pCTR * pCVR, both trained over all impressions.

    Eqs. 1 and 3 of Ma et al., "Entire Space Multi-Task Model: An Effective Approach for Estimating
    Post-Click Conversion Rate" (SIGIR 2018): the embeddings are shared, every task has an MLP, the
    loss is the cross entropy of click and of "click and conversion" on every impression. So a
    task's label here is the whole event (bought, over all impressions), observed in every row and
    not only where the task before it is positive; its output is the logit of that event.

    Ours: chains of any length, and several tasks after one, from the schema's `given`; without any
    `given` the tasks' order is the chain. The product is formed in logits: with logits a and b of
    its factors, the logit of sigmoid(a) sigmoid(b) is -log(e^-a + e^-b + e^-(a + b)), finite
    wherever a and b are. Numeric columns and sequences as fields (`FieldStack`).
    """

    task_specific = False
    Config = EsmmConfig
    Head = EsmmHead

    def __init__(self, config: Any, shape: InputShape):
        chains.require_binary("esmm", shape)
        super().__init__(config, shape)


def _logit_of_product(a: Tensor, b: Tensor) -> Tensor:
    """The logit of sigmoid(a) * sigmoid(b): 1/p - 1 = (1 + e^-a)(1 + e^-b) - 1."""
    return -torch.logsumexp(torch.stack([-a, -b, -a - b]), dim=0)
