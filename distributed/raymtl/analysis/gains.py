"""Differences of two models: the mean over seeds, its intervals, and what may be said of it.

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
FEWEST_PAIRS = 3
"""Pairs of seeds from which there is an interval over seeds."""
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
    """Of the interval over users, which takes the trained models as they are."""
    high: float | None
    verdict: str
    """`better`, `worse`, `within noise`, `undecided`, or `unknown` where no interval exists."""
    num_pairs: int
    """Seeds that both have; 0 where they share none and means over seeds are compared."""
    seeds_low: float | None
    """Of the interval over pairs of seeds, which takes the users as they are; see `over_seeds`."""
    seeds_high: float | None

    @property
    def depends_on_seeds(self) -> bool:
        """Whether one is better over users, but not over seeds: other trainings may turn it."""
        if self.seeds_low is None or self.seeds_high is None:
            return False
        return self.verdict in ("better", "worse") and self.seeds_low <= 0 <= self.seeds_high

    @property
    def words(self) -> str:
        """The verdict, as people read it."""
        return f"{self.verdict} for these seeds" if self.depends_on_seeds else self.verdict


def differences(
    views: list[View], models: Sequence[Measured], references: Sequence[Measured]
) -> list[Difference]:
    """Every metric with an order, in every view.

    Args:
        models: the cells of one model.
        references: the cells of the model it is compared with.
    """
    seeds = {m.cell.seed for m in models} & {m.cell.seed for m in references}
    ours, theirs = (
        sorted((m for m in side if not seeds or m.cell.seed in seeds), key=lambda m: m.cell.seed)
        for side in (models, references)
    )
    found = []
    for v, view in enumerate(views):
        pair = (view.pair.a, view.pair.b) if view.pair else None
        for metric in [m for m in COMPARED if m in ours[0].draws[v]]:
            value = _value(ours, theirs, v, metric)
            between = interval(_value_of_draws(ours, theirs, v, metric))
            said = verdict(between, metric) if value is not None else "unknown"
            both = zip(ours, theirs, strict=True) if seeds else ()
            of_pairs = [_value([a], [b], v, metric) for a, b in both]
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
                    *over_seeds(of_pairs),
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


def over_seeds(values: Sequence[float | None]) -> Interval:
    """Student's 95 % interval of the mean of what single pairs of seeds give.

    It holds what training leaves to chance: fp32 alone, summed in another order, moves AUC by a
    thousandth (docs/log.md, 2026-11-30). Both ends are None below `FEWEST_PAIRS`, or where a pair
    has no value.
    """
    known = [value for value in values if value is not None]
    if len(known) < max(FEWEST_PAIRS, len(values)):
        return Interval(None, None)
    from scipy.special import stdtrit

    mean, error = float(np.mean(known)), np.std(known, ddof=1) / np.sqrt(len(known))
    half = float(stdtrit(len(known) - 1, 0.975) * error)
    return Interval(mean - half, mean + half)


def _value(
    ours: Sequence[Measured], theirs: Sequence[Measured], view: int, metric: str
) -> float | None:
    """Mean of ours less mean of theirs, above 0 where ours is better; None where one has none."""
    sides = [[m.points[view][metric] for m in side] for side in (ours, theirs)]
    if any(value is None for side in sides for value in side):
        return None
    means = [float(np.mean([v for v in side if v is not None])) for side in sides]
    return _sign(metric) * (means[0] - means[1])


def _value_of_draws(
    ours: Sequence[Measured], theirs: Sequence[Measured], view: int, metric: str
) -> np.ndarray:
    """The same in every draw, (R,)."""
    draws = [np.mean([m.draws[view][metric] for m in side], axis=0) for side in (ours, theirs)]
    return _sign(metric) * (draws[0] - draws[1])


def _sign(metric: str) -> float:
    return -1.0 if metric in LOWER_IS_BETTER else 1.0
