"""Row optimizers, run by the rank that owns the row.

`rowwise_adagrad` and `lazy_adam` move, decay and count only touched views: views of a row whose
summed gradient is not all zero this step. A view without an observed label in the batch stays as it
is, and so does its state. `dense_adam` moves every row at every step, as torch.optim.Adam does
with the L2 of the whole tables in the loss; the official STEM code trains so. These are different
trainings, not different speeds of one.

The order of a step: `add_l2`, `squared_norm` (for clipping), `step`. They overwrite the gradients.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from raymtl.config import RowOptimizerSection
from raymtl.embedding.rows import RowGradients, RowPart, Stores, compiled, gather_rows

Rate = Tensor | float
"""Learning rate of each row, (n, 1), or one for all."""


class RowOptimizer(Protocol):
    """Updates the rows of all stores; its rows of state live beside them."""

    num_steps: int
    """Steps taken; part of the state of `dense_adam` only, 0 in the others."""

    def add_l2(self, grads: RowGradients) -> None:
        """Adds lambda * row to the gradient of each touched view; of all with dense_adam."""
        ...

    def squared_norm(self, grads: RowGradients) -> Tensor:
        """This rank's part of the squared gradient norm, a float64 scalar to be summed over ranks.

        Rows that all ranks hold are counted by rank 0.
        """
        ...

    def step(self, grads: RowGradients, scale: float, factor: float) -> None:
        """Moves the rows by `scale` times the gradients (scale: 1, or the clipping factor).

        Args:
            factor: of the learning rates, from the schedule.
        """
        ...


def build(config: RowOptimizerSection, tables: Stores) -> RowOptimizer:
    """Makes the named optimizer and adds its state to the tables."""
    classes = {"rowwise_adagrad": RowwiseAdagrad, "lazy_adam": LazyAdam, "dense_adam": DenseAdam}
    return classes[config.name](config, tables)


class LearningRates:
    """The learning rate of each row: one for all, or one a table."""

    def __init__(self, config: RowOptimizerSection, tables: Stores):
        self.lr = config.lr
        self._of_store: dict[int, tuple[Tensor, Tensor]] = {}
        for store in tables.stores if config.lr_by_table else ():
            device, names = store.values.device, list(store.first_rows)
            starts = torch.tensor(list(store.first_rows.values()), device=device)
            rates = [config.lr_by_table.get(name, config.lr) for name in names]
            self._of_store[id(store)] = starts, torch.tensor(rates, device=device)

    def of(self, part: RowPart, factor: float) -> Rate:
        """Of a part's rows, (n, 1), or one number for all of them."""
        if not self._of_store:
            return self.lr * factor
        starts, rates = self._of_store[id(part.store)]
        index_n = part.index_n
        if index_n is None:
            index_n = torch.arange(part.start, part.stop, device=starts.device)
        # Of tables that start at one row all but the last are empty here.
        table_n = torch.searchsorted(starts, index_n, right=True) - 1
        return rates[table_n].unsqueeze(1) * factor


class RowwiseAdagrad:
    """Adagrad with one accumulator a view: the sum of its mean squared gradients.

    w -= lr * g / (sqrt(sum) + eps), as row-wise Adagrad in FBGEMM and TorchRec, view by view.
    """

    num_steps = 0

    def __init__(self, config: RowOptimizerSection, tables: Stores):
        self.config, self.rates = config, LearningRates(config, tables)
        for store in tables.stores:
            store.add_state("sum_of_squares", 1, config.initial_accumulator)

    def add_l2(self, grads: RowGradients) -> None:
        _add_l2_to_touched(grads, self.config.l2)

    def squared_norm(self, grads: RowGradients) -> Tensor:
        return _squared_norm(grads)

    def step(self, grads: RowGradients, scale: float, factor: float) -> None:
        for part in grads:
            kernels, rate = compiled(part.grads), self.rates.of(part, factor)
            if kernels:
                self._step_compiled(kernels, part, scale, rate)
            else:
                self._step(part, scale, rate)

    def _step_compiled(self, kernels: Any, part: RowPart, scale: float, rate: Rate) -> None:
        rows = part.store.values, part.store.states["sum_of_squares"]
        rates_n = rate.flatten() if isinstance(rate, Tensor) else torch.tensor([rate])
        numbers = (scale, self.config.eps)
        kernels.adagrad(rows, part.index_n, part.grads, part.squares_nV, rates_n, numbers)

    def _step(self, part: RowPart, scale: float, rate: Rate) -> None:
        # An untouched view has gradient 0: adding 0 to both needs no mask.
        index_n, (_, width) = part.index_n, part.shape_VD
        assert index_n is not None
        sums = part.store.states["sum_of_squares"]
        sums_nV = sums.index_select(0, index_n)
        sums_nV += (part.squares_nV * (scale**2 / width)).to(sums.dtype)
        sums.index_copy_(0, index_n, sums_nV)
        scale_nV = scale / (sums_nV.sqrt_() + self.config.eps)
        part.grads_nVD.mul_(scale_nV.unsqueeze(-1))
        if isinstance(rate, Tensor):
            part.grads.mul_(rate)
            rate = 1.0
        part.store.values.index_add_(0, index_n, part.grads, alpha=-rate)


class LazyAdam:
    """Adam on touched views only, with bias correction by each view's own number of updates."""

    num_steps = 0

    def __init__(self, config: RowOptimizerSection, tables: Stores):
        self.config, self.rates = config, LearningRates(config, tables)
        for store in tables.stores:
            store.add_state("exp_avg", tables.width)
            store.add_state("exp_avg_sq", tables.width)
            store.add_state("num_updates", 1, dtype=torch.int32)

    def add_l2(self, grads: RowGradients) -> None:
        _add_l2_to_touched(grads, self.config.l2)

    def squared_norm(self, grads: RowGradients) -> Tensor:
        return _squared_norm(grads)

    def step(self, grads: RowGradients, scale: float, factor: float) -> None:
        for part in grads:
            self._update(part, scale, factor)

    def _update(self, part: RowPart, scale: float, factor: float) -> None:
        # An untouched view has gradient 0, so decaying it by 1 and moving it at rate 0 leaves every
        # bit as it was: cheaper than picking views out.
        index_n, touched_nV, shape = part.index_n, part.touched_nV, part.grads_nVD.shape
        assert index_n is not None
        (beta1, beta2), states = self.config.betas, part.store.states
        count_nV = states["num_updates"].index_select(0, index_n) + touched_nV
        mean = gather_rows(states["exp_avg"], index_n).view(shape)
        square = gather_rows(states["exp_avg_sq"], index_n).view(shape)
        grads = part.grads_nVD.mul_(scale)
        mean.mul_(_decay(beta1, touched_nV)).add_(grads, alpha=1 - beta1)
        square.mul_(_decay(beta2, touched_nV)).addcmul_(grads, grads, value=1 - beta2)
        states["num_updates"].index_copy_(0, index_n, count_nV)
        states["exp_avg"].index_copy_(0, index_n, mean.flatten(1))
        states["exp_avg_sq"].index_copy_(0, index_n, square.flatten(1))
        updates_nV = count_nV.clamp_(min=1).to(torch.float64)
        rate_nV = self.rates.of(part, factor) * touched_nV / (1 - beta1**updates_nV)
        root_nV = (1 - beta2**updates_nV).sqrt()
        square.sqrt_().div_(root_nV.float().unsqueeze(-1)).add_(self.config.eps)
        mean.mul_(rate_nV.float().unsqueeze(-1)).div_(square)
        part.store.values.index_add_(0, index_n, mean.flatten(1), alpha=-1)


def _decay(beta: float, touched_nV: Tensor) -> Tensor:
    """(n, V, 1): beta where touched, 1 elsewhere."""
    return torch.where(touched_nV, beta, 1.0).float().unsqueeze(-1)


class DenseAdam:
    """torch.optim.Adam over whole tables, operation by operation, weight_decay being l2."""

    def __init__(self, config: RowOptimizerSection, tables: Stores):
        self.config, self.rates = config, LearningRates(config, tables)
        self.num_steps = 0
        for store in tables.stores:
            store.add_state("exp_avg", tables.width)
            store.add_state("exp_avg_sq", tables.width)

    def add_l2(self, grads: RowGradients) -> None:
        for part in grads:
            part.make_dense()
            part.add(part.store.values[part.start : part.stop], self.config.l2)

    def squared_norm(self, grads: RowGradients) -> Tensor:
        return _squared_norm(grads)

    def step(self, grads: RowGradients, scale: float, factor: float) -> None:
        self.num_steps += 1
        beta1, beta2 = self.config.betas
        unbiased = factor / (1 - beta1**self.num_steps)
        root = (1 - beta2**self.num_steps) ** 0.5
        for part in grads:
            part.make_dense()
            values, mean, square = (
                part.store.tensors[name][part.start : part.stop]
                for name in ("values", "exp_avg", "exp_avg_sq")
            )
            gradient = part.grads.mul_(scale)
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root_n = (square.sqrt() / root).add_(self.config.eps)
            rate = self.rates.of(part, unbiased)
            if isinstance(rate, Tensor):
                values.sub_((mean / root_n).mul_(rate))
            else:
                values.addcdiv_(mean, root_n, value=-rate)


def _add_l2_to_touched(grads: RowGradients, l2: float) -> None:
    if l2 == 0:
        return
    for part in grads:
        assert part.index_n is not None
        values_nVD = gather_rows(part.store.values, part.index_n).view_as(part.grads_nVD)
        values_nVD *= part.touched_nV.unsqueeze(-1)
        part.add(values_nVD.view_as(part.grads), l2)


def _squared_norm(grads: RowGradients) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=grads[0].grads.device if grads else None)
    for part in grads:
        if part.counted:
            total += part.squares_nV.sum()
    return total
