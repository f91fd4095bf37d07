"""Learner: one rank's model, table rows and optimizers, and the one step that moves them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raymtl import collectives, losses
from raymtl.balancing import Balancer, projection
from raymtl.batch import Batch, Inputs
from raymtl.collectives import Group
from raymtl.compiling import training_forward
from raymtl.config import TrainConfig
from raymtl.dense import DenseParameters, clip_scale, groups_of, learning_rate_factor
from raymtl.embedding import fields, optimizers
from raymtl.embedding.rows import RowGradients, Rows, combined, inner_products
from raymtl.embedding.sharded import Asked, ShardedTables
from raymtl.embedding.tables import check_ids, table_specs
from raymtl.models import registry
from raymtl.schema import LogSchema
from raymtl.timing import TimeSplit

ROW_STEPS = "row_optimizer/num_steps"
"""Key of the row optimizer's step count among the dense tensors."""
WORD_FLOATS = 3
"""Of a rank's word to all."""


@dataclass
class StepOutcome:
    """What a step gives to reports; `finite` is False where nothing was moved."""

    loss: Tensor
    """Global loss, a scalar, without L2 and a model's own terms; weighted by loss_weight alone."""
    loss_T: Tensor
    """Its parts by task, unweighted."""
    weight_T: Tensor
    """What balancing weighed them with."""
    probabilities_BT: Tensor
    logits_BT: Tensor
    finite: bool
    word: tuple[float, ...]
    """What all ranks said, summed."""


class Learner:
    """Built alike on every rank; dense parameters are equal everywhere, table rows are sharded."""

    def __init__(self, config: TrainConfig, schema: LogSchema, device: torch.device):
        self.config, self.schema, self.device = config, schema, device
        self.layout = registry.layout(config.model, schema)
        self.kinds = tuple(task.kind for task in schema.tasks)
        self.loss_weight_T = torch.tensor([t.loss_weight for t in schema.tasks], device=device)
        width = config.embedding.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model: Any = registry.build(config.model, self.layout, width).to(device)
        self.training_forward = training_forward(self.model, config.train.compile is True)
        self.shape = registry.shape(config.model, self.layout, width)
        specs = table_specs(schema, self.shape)
        self.tables = ShardedTables(specs, config.embedding, config.seed, device)
        self.balancer = Balancer(config.balancing, self.kinds, device)
        parameters = dict(self.model.named_parameters()) | self.balancer.parameters
        groups = groups_of(self.model, tuple(parameters), config.optimizer.dense)
        num_extra = 1 + len(self.kinds) + WORD_FLOATS
        self.dense = DenseParameters(parameters, groups, num_extra)
        self.row_optimizer = optimizers.build(config.optimizer.rows, self.tables)
        self.times = TimeSplit()

    @property
    def num_sums(self) -> int:
        """Length of `local_sums`."""
        return 1 + len(self.kinds) + getattr(self.model, "num_statistics", 0)

    def local_sums(self, batch: Batch) -> Tensor:
        """This rank's part of what a step must know of the global batch; float64 (num_sums,).

        The losses' denominators, then the statistics the model asks for. To be summed over ranks.
        """
        denominators = losses.local_denominators(batch)
        if not hasattr(self.model, "statistics"):
            return denominators
        statistics = self.model.statistics(batch)
        assert len(statistics) == self.model.num_statistics, "a model's statistics changed length"
        return torch.cat([denominators, statistics.to(denominators)])

    def ask(self, batch: Batch, group: Group | None = None) -> Asked:
        """Collective over `group`. The part of a checked batch's lookup that reads no row."""
        return self.tables.ask(batch.ids_BC, self.layout, group)

    def step(
        self,
        batch: Batch,
        sums: Tensor,
        step: int,
        num_steps: int,
        asked: Asked | None = None,
        word: Sequence[float] = (0.0,) * WORD_FLOATS,
    ) -> StepOutcome:
        """Collective. One step of training.

        Args:
            batch: this rank's rows.
            sums: `local_sums` summed over ranks.
            step: global step, 0-based; seeds dropout and places the schedule.
            num_steps: steps of the whole run, for the schedule.
            asked: what `ask` gave for the batch; null to ask now.
            word: small numbers that this rank says to all; they ride along with the gradients.
        """
        self.model.train()
        self.dense.zero_grad()
        rows = self.tables.fetch(asked or self.ask(batch))
        self.times.lap("exchange")
        denominators, statistics = sums[: 1 + len(self.kinds)], sums[1 + len(self.kinds) :]
        if len(statistics):
            self.model.take_statistics(statistics)
        with torch.random.fork_rng(devices=[]):
            _seed(_mix(self.config.seed, step, collectives.rank()), self.device)
            with self._autocast():
                logits_BT = self.training_forward(self._inputs(rows, batch)).float()
        loss_T = losses.per_task(
            losses.task_losses(logits_BT, batch, self.kinds),
            denominators,
            self.config.train.loss_denominator,
        )
        weight_T = self.balancer.weights_T()
        terms_T = loss_T * self.loss_weight_T * weight_T
        penalty = self._penalty(logits_BT, batch, denominators)
        self.times.lap("forward")
        if self.config.balancing.name == "pcgrad":
            gradients = self._projected(terms_T, penalty, rows, step)
            self.times.lap("backward")
        else:
            total = terms_T.sum() if penalty is None else terms_T.sum() + penalty
            total.backward()
            self.times.lap("backward")
            gradients = self.tables.collect(rows)
            self.times.lap("exchange")
        self.dense.extras[1:] = torch.cat([loss_T.detach(), loss_T.new_tensor(word)])
        finite, said = self._move(gradients, step, num_steps)
        total_T = said[: len(self.kinds)]
        return StepOutcome(
            loss=(total_T * self.loss_weight_T).sum(),
            loss_T=total_T,
            weight_T=weight_T.detach(),
            probabilities_BT=losses.probabilities(logits_BT.detach(), self.kinds),
            logits_BT=logits_BT.detach(),
            finite=finite,
            word=tuple(said[len(self.kinds) :].tolist()),
        )

    @torch.no_grad()
    def probabilities(self, batch: Batch) -> Tensor:
        """Collective. Predictions of a batch, (B, T): probabilities, or values of a regression."""
        self.model.eval()
        rows = self.tables.lookup(batch.ids_BC, self.layout)
        return losses.probabilities(self.model(self._inputs(rows, batch)), self.kinds)

    @torch.no_grad()
    def gate_mass(self, batch: Batch) -> dict[str, float]:
        """Collective. What each task takes from each source, mean over the global batch.

        Returns:
            `gate/<layer>/<task>/<source>` -> share; empty for models without gates.
        """
        if not hasattr(self.model, "gate_mass"):
            return {}
        self.model.eval()
        inputs = self._inputs(self.tables.lookup(batch.ids_BC, self.layout), batch)
        mass_LTK = self.model.gate_mass(inputs, batch.weight_B).double()
        weight = batch.weight_B.sum().double()
        total = collectives.sum_(torch.cat([(mass_LTK * weight).flatten(), weight.reshape(1)]))
        mass_LTK = (total[:-1] / total[-1].clamp(min=1e-300)).view_as(mass_LTK)
        return {
            f"gate/{layer}/{task}/{source}": float(mass_LTK[layer, t, k])
            for layer in range(len(mass_LTK))
            for t, task in enumerate(self.layout.task_names)
            for k, source in enumerate(self.model.gate_sources)
        }

    def checked(self, batch: Batch) -> Batch:
        """The batch on this rank's device. Raises IdOutOfRange; no other rank takes part."""
        check_ids(batch.ids_BC, self.layout, self.tables.specs)
        return batch.to(self.device)

    def dense_state(self) -> dict[str, Tensor]:
        """All that is equal on every rank: dense parameters, their optimizers', balancing's."""
        steps = {ROW_STEPS: torch.tensor(self.row_optimizer.num_steps)}
        return self.dense.state() | self.balancer.state() | steps

    def load_dense_state(self, tensors: Mapping[str, Tensor], optimizer: bool) -> None:
        """Takes what `dense_state` gave; without `optimizer` the weights alone."""
        if not optimizer:
            tensors = {key: t for key, t in tensors.items() if key.startswith("model/")}
        self.dense.load_state(tensors)
        if optimizer:
            self.balancer.load_state(tensors)
            self.take_row_steps(tensors)

    def take_row_steps(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the row optimizer's step count from what `dense_state` gave."""
        self.row_optimizer.num_steps = int(tensors[ROW_STEPS])

    def _penalty(self, logits_BT: Tensor, batch: Batch, denominators: Tensor) -> Tensor | None:
        """This rank's part of the model's and balancing's own terms of the loss."""
        total = denominators[0].clamp(min=torch.finfo(denominators.dtype).tiny).float()
        terms = [self.balancer.penalty()]
        if hasattr(self.model, "penalty"):
            terms.append(self.model.penalty(logits_BT))
        parts = [(batch.weight_B * term).sum() / total for term in terms if term is not None]
        return torch.stack(parts).sum() if parts else None

    def _projected(
        self, terms_T: Tensor, penalty: Tensor | None, rows: Rows, step: int
    ) -> RowGradients:
        """Collective. A backward pass a task, then PCGrad's combination of their gradients."""
        losses_ = [*terms_T.unbind(0), *([] if penalty is None else [penalty])]
        dense, parts = [], []
        for loss in losses_:
            self.dense.zero_grad()
            loss.backward(retain_graph=loss is not losses_[-1])
            dense.append(self.dense.gradients.clone())
            parts.append(self.tables.collect(rows))
        num_tasks = len(terms_T)
        global_Tn = collectives.sum_(torch.stack(dense))
        gram_TT = collectives.sum_(inner_products(parts[:num_tasks]))
        tasks_Tn = global_Tn[:num_tasks].double()
        weights = projection(gram_TT + tasks_Tn @ tasks_Tn.t(), _mix(self.config.seed, step, 0))
        weights = torch.cat([weights, weights.new_ones(len(losses_) - num_tasks)]).to(self.device)
        # The buffer is summed over ranks once more in _move: only rank 0 fills it.
        self.dense.zero_grad()
        if collectives.rank() == 0:
            self.dense.gradients.copy_(weights.float() @ global_Tn)
        return combined(parts, weights.tolist())

    def _move(self, gradients: RowGradients, step: int, num_steps: int) -> tuple[bool, Tensor]:
        """Collective. Sums, clips and applies the gradients, unless one is not finite.

        Returns:
            Whether all are, and all ranks' losses and words.
        """
        self.row_optimizer.add_l2(gradients)
        self.dense.extras[0] = self.row_optimizer.squared_norm(gradients)
        self.times.lap("optimizer")
        collectives.sum_(self.dense.buffer)
        self.times.lap("exchange")
        squared_norm = self.dense.squared_norm() + self.dense.extras[0].double()
        said = self.dense.extras[1:].clone()
        finite = bool(torch.isfinite(squared_norm + said.sum()))
        if finite:
            section = self.config.optimizer
            factor = learning_rate_factor(section.schedule, step, num_steps)
            scale = float(clip_scale(squared_norm, section.clip_norm))
            self.dense.step(scale, factor)
            self.row_optimizer.step(gradients, scale, factor)
            self.balancer.record(said[: len(self.kinds)])
        self.times.lap("optimizer")
        return finite, said

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16"
        )

    def _inputs(self, rows: Rows, batch: Batch) -> Inputs:
        return fields.assemble(rows, batch, self.layout, self.shape.num_views, self.shape.width)


def _mix(seed: int, step: int, rank: int) -> int:
    """A seed of its own for each (seed, step, rank)."""
    return ((seed * 1_000_003 + step) * 1_000_003 + rank) % 2**63


def _seed(seed: int, device: torch.device) -> None:
    """Of the generators that a step draws from; torch.manual_seed also writes down its callers."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
