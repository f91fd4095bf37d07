"""DEPHN's virtual gradient: a factor on a gate's gradient that its forward value does not show.

Kong et al., DEPHN (IJCNN 2023), section III-C, equations 8 and 9 and Fig. 4. The gate G of task t
on (expert, mapping) moves by its ordinary gradient times

    c_t = prod over tasks j != t of gamma(x, y),   x = |corr(Y_j, Y_t)|,  y = min(1, |G_t - G_j|)

T tasks, E experts, P mappings.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from raymtl.batch import Batch

Correlation = Literal["pearson", "cosine"]
Gamma = Literal[
    "add_cos", "add_abs", "add_square", "add_sqrt", "mul_cos", "mul_abs", "mul_square", "mul_sqrt"
]
Mode = Literal["straight_through", "ratio", "none"]

SUMS_PER_PAIR = 4
CONSTANT = 1e-12
"""A variance below this share of the mean square is rounding: the label does not vary."""


def _additive(x: Tensor, y: Tensor) -> Tensor:
    return x + y - 1


def _multiplicative(x: Tensor, y: Tensor) -> Tensor:
    return 2 * x * y - 1


def _root(u: Tensor) -> Tensor:
    """2 sqrt(|u|), whose derivative at 0 is taken as 0 (`ratio` differentiates gamma)."""
    zero = u == 0
    return 2 * torch.where(zero, 1.0, u).abs().sqrt() * ~zero


GAMMAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add_cos": lambda x, y: torch.cos(torch.pi * (x + y)) + 1,
    "add_abs": lambda x, y: 2 * _additive(x, y).abs(),
    "add_square": lambda x, y: 2 * _additive(x, y).square(),
    "add_sqrt": lambda x, y: _root(_additive(x, y)),
    "mul_cos": lambda x, y: torch.cos(2 * torch.pi * x * y) + 1,
    "mul_abs": lambda x, y: 2 * _multiplicative(x, y).abs(),
    "mul_square": lambda x, y: 2 * _multiplicative(x, y).square(),
    "mul_sqrt": lambda x, y: _root(_multiplicative(x, y)),
}
"""Fig. 4's eight functions of x, y in [0, 1], onto [0, 2]. `add_cos` is equation 9. The captions
print the root without bars; the figure's heat maps are defined on both sides of its zero line, so
the root is that of |u|."""


def virtual_gate(gate_TEP: Tensor, correlation_TT: Tensor, gamma: Gamma, mode: Mode) -> Tensor:
    """The gate's own values, bit for bit, with another gradient.

    `straight_through` is equation 8: task t's gate receives c_t times its gradient, other tasks'
    gates nothing of it. `ratio` is the paper's sentence on its implementation taken literally
    (scale the gate by c, divide by the frozen c); it is not equation 8: dG~/dG = 1 + G dln(c)/dG,
    and a part of task t's gradient goes to the other tasks' gates. Where c is 0 the ratio is not
    defined, and the plain gate stands there (ours).

    Args:
        correlation_TT: in [0, 1], from `absolute_correlation`.
    """
    if mode == "none":
        return gate_TEP
    if mode == "ratio":
        c_TEP = coefficient(gate_TEP, correlation_TT, gamma)
        defined = c_TEP.detach() > 0
        safe = torch.where(defined, c_TEP, 1.0)
        return gate_TEP * (safe / safe.detach())
    frozen = gate_TEP.detach()
    return frozen + coefficient(frozen, correlation_TT, gamma) * (gate_TEP - frozen)


def coefficient(gate_TEP: Tensor, correlation_TT: Tensor, gamma: Gamma) -> Tensor:
    """c_TEP in [0, 2^(T-1)]: per gate the product over the other tasks; 1 for a single task."""
    y_TTEP = (gate_TEP[:, None] - gate_TEP[None]).abs().clamp(max=1)
    x_TT11 = correlation_TT.to(gate_TEP)[:, :, None, None]
    itself = torch.eye(len(gate_TEP), dtype=torch.bool, device=gate_TEP.device)[:, :, None, None]
    factor_TTEP = torch.where(itself, 1.0, GAMMAS[gamma](x_TT11, y_TTEP))
    return factor_TTEP.prod(dim=1)


def label_sums(batch: Batch) -> Tensor:
    """What the correlation of every pair of tasks needs, summed over this rank's rows.

    Only rows where both labels of a pair are observed count, each by its row weight.

    Returns:
        float64 (4 * T * T,): for each pair (t, j) the sums of 1, y_t, y_t^2 and y_t y_j.
    """
    seen_BT = batch.mask_BT.double()
    y_BT = torch.where(batch.mask_BT, batch.labels_BT.double(), 0.0)
    weighted_BT = seen_BT * batch.weight_B.double()[:, None]
    sums = [
        seen_BT.t() @ weighted_BT,
        y_BT.t() @ weighted_BT,
        y_BT.square().t() @ weighted_BT,
        (y_BT * batch.weight_B.double()[:, None]).t() @ y_BT,
    ]
    return torch.stack(sums).flatten()


def absolute_correlation(sums: Tensor, kind: Correlation) -> Tensor:
    """|Pearson| or |cosine similarity| of each pair of labels, float64 (T, T) in [0, 1].

    0 where it is undefined (ours): no row shows both labels, or one does not vary (Pearson), or is
    0 throughout (cosine).

    Args:
        sums: `label_sums`, summed over ranks.
    """
    count, y, yy, product = sums.unflatten(0, (SUMS_PER_PAIR, -1)).unbind()
    num_tasks = round(len(count) ** 0.5)
    count, y, yy, product = (s.unflatten(0, (num_tasks, -1)) for s in (count, y, yy, product))
    rows = count.clamp(min=torch.finfo(count.dtype).tiny)
    mean, square, inner = y / rows, yy / rows, product / rows
    if kind == "pearson":
        varies = (square - mean.square()).clamp(min=0)
        spread, inner = varies * (varies > CONSTANT * square), inner - mean * mean.t()
    else:
        spread = square
    scale = (spread * spread.t()).sqrt()
    defined = scale > 0
    return torch.where(defined, inner.abs() / torch.where(defined, scale, 1.0), 0.0).clamp(max=1)
