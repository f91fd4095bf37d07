"""Row optimizers, run by the rank that owns the row.

`rowwise_adagrad` and `lazy_adam` move, decay and count only touched views: views of a row whose
summed gradient is not all zero this step. A view without an observed label in the batch stays as it
is, and so does its state. `dense_adam` moves every row at every step, as torch.optim.Adam does
with the L2 of the whole tables in the loss; the official STEM code trains so. These are different
trainings, not different speeds of one.

The order of a step: `add_l2`, `squared_norm` (for clipping), `step`. They overwrite the gradients.
"""

from typing import Protocol

import torch
from torch import Tensor

from raymtl.config import RowOptimizerSection
from raymtl.embedding.rows import RowGradients, RowPart, Tables, gather_rows


class RowOptimizer(Protocol):
    """Updates the rows of all stores of a `Tables`; its rows of state live beside them."""

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

    def step(self, grads: RowGradients, scale: float, lr: float) -> None:
        """Moves the rows by `scale` times the gradients (scale: 1, or the clipping factor)."""
        ...


def build(config: RowOptimizerSection, tables: Tables) -> RowOptimizer:
    """Makes the named optimizer and adds its state to the tables."""
    classes = {"rowwise_adagrad": RowwiseAdagrad, "lazy_adam": LazyAdam, "dense_adam": DenseAdam}
    return classes[config.name](config, tables)


class RowwiseAdagrad:
    """Adagrad with one accumulator a view: the sum of its mean squared gradients.

    w -= lr * g / (sqrt(sum) + eps), as row-wise Adagrad in FBGEMM and TorchRec, view by view.
    """

    num_steps = 0

    def __init__(self, config: RowOptimizerSection, tables: Tables):
        self.config = config
        for store in tables.stores:
            store.add_state("sum_of_squares", 1, config.initial_accumulator)

    def add_l2(self, grads: RowGradients) -> None:
        _add_l2_to_touched(grads, self.config.l2)

    def squared_norm(self, grads: RowGradients) -> Tensor:
        return _squared_norm(grads)

    def step(self, grads: RowGradients, scale: float, lr: float) -> None:
        # An untouched view has gradient 0: adding 0 to both needs no mask.
        for part in grads:
            index_n, (_, width) = part.index_n, part.shape_VD
            assert index_n is not None
            sums = part.store.states["sum_of_squares"]
            sums_nV = sums.index_select(0, index_n)
            sums_nV += (part.squares_nV * (scale**2 / width)).to(sums.dtype)
            sums.index_copy_(0, index_n, sums_nV)
            factor_nV = scale / (sums_nV.sqrt_() + self.config.eps)
            part.grads_nVD.mul_(factor_nV.unsqueeze(-1))
            part.store.values.index_add_(0, index_n, part.grads, alpha=-lr)


class LazyAdam:
    """Adam on touched views only, with bias correction by each view's own number of updates."""

    num_steps = 0

    def __init__(self, config: RowOptimizerSection, tables: Tables):
        self.config = config
        for store in tables.stores:
            store.add_state("exp_avg", tables.width)
            store.add_state("exp_avg_sq", tables.width)
            store.add_state("num_updates", 1, dtype=torch.int32)

    def add_l2(self, grads: RowGradients) -> None:
        _add_l2_to_touched(grads, self.config.l2)

    def squared_norm(self, grads: RowGradients) -> Tensor:
        return _squared_norm(grads)

    def step(self, grads: RowGradients, scale: float, lr: float) -> None:
        for part in grads:
            self._update(part, scale, lr)

    def _update(self, part: RowPart, scale: float, lr: float) -> None:
        num_views, width = part.shape_VD
        assert part.index_n is not None
        touched_t = part.touched_nV.flatten().nonzero().squeeze(1)
        view_t = part.index_n[touched_t // num_views] * num_views + touched_t % num_views
        grads = gather_rows(part.grads.view(-1, width), touched_t).mul_(scale)
        (beta1, beta2), states = self.config.betas, part.store.states
        means, squares = states["exp_avg"].view(-1, width), states["exp_avg_sq"].view(-1, width)
        counts = states["num_updates"].view(-1)
        mean = gather_rows(means, view_t).lerp_(grads, 1 - beta1)
        square = gather_rows(squares, view_t).mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
        count_t = counts[view_t] + 1
        means.index_copy_(0, view_t, mean)
        squares.index_copy_(0, view_t, square)
        counts.index_copy_(0, view_t, count_t)
        rate_t = lr / (1 - beta1 ** count_t.to(torch.float64))
        root_t = (1 - beta2 ** count_t.to(torch.float64)).sqrt()
        square.sqrt_().div_(root_t.to(square.dtype).unsqueeze(1)).add_(self.config.eps)
        mean.mul_(rate_t.to(mean.dtype).unsqueeze(1)).div_(square)
        part.store.values.view(-1, width).index_add_(0, view_t, mean, alpha=-1)


class DenseAdam:
    """torch.optim.Adam over whole tables, operation by operation, weight_decay being l2."""

    def __init__(self, config: RowOptimizerSection, tables: Tables):
        self.config = config
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

    def step(self, grads: RowGradients, scale: float, lr: float) -> None:
        self.num_steps += 1
        beta1, beta2 = self.config.betas
        rate = lr / (1 - beta1**self.num_steps)
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
            values.addcdiv_(mean, (square.sqrt() / root).add_(self.config.eps), value=-rate)


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
