"""Differences of two models: the mean over seeds, its interval, and what may be said of it.

MTL gain is PLE's eq. 11: M_multi - M_single where more is better, M_single - M_multi otherwise; so
above 0 the model is the better one, in every metric.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymtl.analysis.bootstrap import NOISE, Interval, interval
from raymtl.analysis.cells import Cell
from raymtl.analysis.views import View

LOWER_IS_BETTER = ("log_loss", "rmse", "mae")
COMPARED = ("auc", "gauc", *LOWER_IS_BETTER)
"""Metrics that have an order; calibration is best at 1 and has none."""
IN_AUC = ("auc", "gauc")
"""Metrics whose differences can be within noise."""
Points = dict[str, float | int | None]


@dataclass(frozen=True)
class Measured:
    """A cell's metrics: for each view those of the log itself, and those of every draw."""

    cell: Cell
    points: list[Points]
    draws: list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Difference:
    """How much better a model is than its reference, for one task, bin and metric."""

    model: str
    reference: str
    task: int
    pair: tuple[int, int] | None
    bin: str
    metric: str
    value: float | None
    """Mean over seeds; above 0 where the model is the better one."""
    low: float | None
    high: float | None
    verdict: str
    """`better`, `worse`, `within noise`, `undecided`, or `unknown` where no interval exists."""
    num_pairs: int
    """Seeds that both have; 0 where they share none and means over seeds are compared."""


def differences(
    views: list[View], models: Sequence[Measured], references: Sequence[Measured]
) -> list[Difference]:
    """Every metric with an order, in every view.

    Args:
        models: the cells of one model.
        references: the cells of the model it is compared with.
    """
    seeds = {m.cell.seed for m in models} & {m.cell.seed for m in references}
    ours = [m for m in models if not seeds or m.cell.seed in seeds]
    theirs = [m for m in references if not seeds or m.cell.seed in seeds]
    found = []
    for v, view in enumerate(views):
        pair = (view.pair.a, view.pair.b) if view.pair else None
        for metric in [m for m in COMPARED if m in ours[0].draws[v]]:
            value, draws_R = _difference(ours, theirs, v, metric)
            between = interval(draws_R)
            said = verdict(between, metric) if value is not None else "unknown"
            found.append(
                Difference(
                    ours[0].cell.label,
                    theirs[0].cell.label,
                    view.task,
                    pair,
                    view.bin,
                    metric,
                    value,
                    between.low,
                    between.high,
                    said,
                    len(seeds),
                )
            )
    return found


def verdict(between: Interval, metric: str) -> str:
    """What an interval of a difference allows to say.

    `within noise` means: it holds 0 and its half-width is at most .003 AUC; `undecided`: it holds
    0 and is wider, or the metric is not on the scale of AUC.
    """
    if between.low is None or between.high is None or between.half_width is None:
        return "unknown"
    if between.low > 0:
        return "better"
    if between.high < 0:
        return "worse"
    narrow = between.half_width <= NOISE and metric in IN_AUC
    return "within noise" if narrow else "undecided"


def _difference(
    ours: Sequence[Measured], theirs: Sequence[Measured], view: int, metric: str
) -> tuple[float | None, np.ndarray]:
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    sides = [[m.points[view][metric] for m in side] for side in (ours, theirs)]
    draws = [np.mean([m.draws[view][metric] for m in side], axis=0) for side in (ours, theirs)]
    draws_R = sign * (draws[0] - draws[1])
    if any(value is None for side in sides for value in side):
        return None, draws_R
    means = [float(np.mean([v for v in side if v is not None])) for side in sides]
    return sign * (means[0] - means[1]), draws_R
