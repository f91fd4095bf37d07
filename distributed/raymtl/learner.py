"""Learner: one rank's model, table rows and optimizers, and the one step that moves them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from raymtl import collectives, losses
from raymtl.batch import Batch, Layout
from raymtl.config import TrainConfig
from raymtl.dense import DenseParameters, clip_scale, learning_rate_factor
from raymtl.embedding import fields, optimizers
from raymtl.embedding.sharded import ShardedTables
from raymtl.embedding.tables import check_ids, table_specs
from raymtl.models import registry
from raymtl.schema import LogSchema


@dataclass
class StepOutcome:
    """What a step gives to reports; `finite` is False where nothing was moved."""

    loss: Tensor
    """Global loss, a scalar, without L2."""
    loss_T: Tensor
    """Its parts by task, unweighted by loss_weight."""
    probabilities_BT: Tensor
    logits_BT: Tensor
    finite: bool


class Learner:
    """Built alike on every rank; dense parameters are equal everywhere, table rows are sharded."""

    def __init__(self, config: TrainConfig, schema: LogSchema, device: torch.device):
        self.config, self.schema, self.device = config, schema, device
        self.layout = Layout.of(schema)
        self.kinds = tuple(task.kind for task in schema.tasks)
        self.loss_weight_T = torch.tensor([t.loss_weight for t in schema.tasks], device=device)
        width = config.embedding.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = registry.build(config.model, self.layout, width).to(device)
        self.shape = registry.shape(config.model, self.layout, width)
        specs = table_specs(schema, self.shape)
        self.tables = ShardedTables(specs, config.embedding, config.seed, device)
        self.dense = DenseParameters(
            self.model, config.optimizer.dense, num_extra=1 + len(self.kinds)
        )
        self.row_optimizer = optimizers.build(config.optimizer.rows, self.tables)

    def step(self, batch: Batch, denominators: Tensor, step: int, num_steps: int) -> StepOutcome:
        """Collective. One step of training.

        Args:
            batch: this rank's rows.
            denominators: `losses.local_denominators` summed over ranks.
            step: global step, 0-based; seeds dropout and places the schedule.
            num_steps: steps of the whole run, for the schedule.
        """
        self.model.train()
        self.dense.zero_grad()
        rows = self.tables.lookup(batch.ids_BC, self.layout)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mix(self.config.seed, step, collectives.rank()))
            logits_BT = self.model(self._inputs(rows, batch))
        sums_T = losses.task_losses(logits_BT, batch, self.kinds)
        loss, loss_T = losses.combine(
            sums_T, denominators, self.loss_weight_T, self.config.train.loss_denominator
        )
        loss.backward()
        gradients = self.tables.collect(rows)
        self.row_optimizer.add_l2(gradients)
        self.dense.extras[0] = self.row_optimizer.squared_norm(gradients)
        self.dense.extras[1:] = loss_T.detach()
        collectives.sum_(self.dense.buffer)
        squared_norm = self.dense.squared_norm() + self.dense.extras[0].double()
        total_T = self.dense.extras[1:].clone()
        finite = bool(torch.isfinite(squared_norm + total_T.sum()))
        if finite:
            factor = learning_rate_factor(self.config.optimizer.schedule, step, num_steps)
            scale = clip_scale(squared_norm, self.config.optimizer.clip_norm)
            self.dense.step(scale, self.config.optimizer.dense.lr * factor)
            self.row_optimizer.step(gradients, float(scale), self.config.optimizer.rows.lr * factor)
        return StepOutcome(
            loss=(total_T * self.loss_weight_T).sum(),
            loss_T=total_T,
            probabilities_BT=losses.probabilities(logits_BT.detach(), self.kinds),
            logits_BT=logits_BT.detach(),
            finite=finite,
        )

    @torch.no_grad()
    def probabilities(self, batch: Batch) -> Tensor:
        """Collective. Predictions of a batch, (B, T): probabilities, or values of a regression."""
        self.model.eval()
        rows = self.tables.lookup(batch.ids_BC, self.layout)
        return losses.probabilities(self.model(self._inputs(rows, batch)), self.kinds)

    def checked(self, batch: Batch) -> Batch:
        """The batch on this rank's device. Raises IdOutOfRange; no other rank takes part."""
        check_ids(batch.ids_BC, self.layout, self.tables.specs)
        return batch.to(self.device)

    def _inputs(self, rows, batch: Batch):
        return fields.assemble(rows, batch, self.layout, self.shape.num_views, self.shape.width)


def _mix(seed: int, step: int, rank: int) -> int:
    """A seed of its own for each (seed, step, rank)."""
    return ((seed * 1_000_003 + step) * 1_000_003 + rank) % 2**63
