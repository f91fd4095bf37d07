"""The bootstrap over users: all metrics of a cell for every draw, exact, without its rows copied.

A draw takes as many users as there are, with replacement, so it is a count per user. Sums over
rows are then sums over users times their counts; GAUC needs only each user's own AUC and
impressions; AUC is one pass over the sorted rows, each weighing as often as its user was drawn. Two
copies of one user are two users of that draw. Draws follow from the seed alone, so that all cells
share them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from raymtl.analysis.views import View
from raymtl.scores import areas, binary_loss

KEPT_COUNTS = 100_000_000
"""Up to this many counts (2 bytes each) are kept between cells; above, drawn again each time."""
FEWEST = 0.95
"""Share of the draws in which a metric must exist for it to have an interval."""
NOISE = 0.003
"""Half-width of an interval, in AUC, up to which a difference around 0 is called noise."""


class Draws:
    """`num` draws of users with replacement, the same at every iteration."""

    def __init__(self, num_units: int, num: int, seed: int):
        self.num_units, self.num, self.seed = num_units, num, seed
        self._kept: list[np.ndarray] | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields counts per unit, float64 (U,)."""
        if self._kept is None and self.num * self.num_units <= KEPT_COUNTS:
            self._kept = [self._draw(i).astype(np.uint16) for i in range(self.num)]
        for i in range(self.num):
            counts = self._kept[i] if self._kept is not None else self._draw(i)
            yield counts.astype(np.float64)

    def _draw(self, number: int) -> np.ndarray:
        generator = np.random.default_rng((self.seed, number))
        drawn = generator.integers(0, self.num_units, self.num_units)
        return np.bincount(drawn, minlength=self.num_units)


def metrics_of_draws(
    views: list[View], scores_NT: np.ndarray, draws: Draws
) -> list[dict[str, np.ndarray]]:
    """One cell's metrics in every draw.

    Returns:
        For each view metric -> float64 (num draws,), NaN where it does not exist.
    """
    kinds = {"binary": _Binary, "regression": _Regression}
    parts = [kinds[view.kind](view, scores_NT[view.row_n, view.task]) for view in views]
    out = [{m: np.full(draws.num, np.nan) for m in part.metrics} for part in parts]
    with np.errstate(divide="ignore", invalid="ignore"):
        for i, counts_U in enumerate(draws):
            for part, values in zip(parts, out, strict=True):
                for metric, value in part.at(counts_U).items():
                    values[metric][i] = value
    return out


class Interval(NamedTuple):
    """A 95 % interval; both ends None where too few draws have the metric."""

    low: float | None
    high: float | None

    @property
    def half_width(self) -> float | None:
        """Half of its length."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def interval(values_R: np.ndarray) -> Interval:
    """The 2.5 and 97.5 percentiles of the draws that have a value."""
    known = values_R[np.isfinite(values_R)]
    if len(known) == 0 or len(known) < FEWEST * len(values_R):
        return Interval(None, None)
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(float(low), float(high))


class _Sums:
    """Sums over a view's rows, kept by unit; only the view's own units, for a bin has few."""

    def __init__(self, view: View, columns: list[np.ndarray]):
        self.units, place_n = np.unique(view.unit_n, return_inverse=True)
        sums = [np.bincount(place_n, c, minlength=len(self.units)) for c in columns]
        self.sums = np.stack(sums, axis=1)

    def add(self, *columns: np.ndarray) -> None:
        """Appends sums that are by unit already."""
        self.sums = np.column_stack([self.sums, *columns])

    def at(self, counts_U: np.ndarray) -> np.ndarray:
        """The sums of a draw, one per column."""
        return counts_U.take(self.units) @ self.sums


class _Regression:
    metrics = ("rmse", "mae")

    def __init__(self, view: View, scores_n: np.ndarray):
        errors, w = scores_n - view.label_n, view.weight_n
        self._sums = _Sums(view, [errors**2 * w, abs(errors) * w, w])

    def at(self, counts_U: np.ndarray) -> dict[str, float]:
        squares, absolutes, weight = self._sums.at(counts_U)
        return {"rmse": np.sqrt(squares / weight), "mae": absolutes / weight}


class _Binary:
    metrics = ("auc", "gauc", "log_loss", "calibration")

    def __init__(self, view: View, scores_n: np.ndarray):
        y, w = view.label_n, view.weight_n
        self._sums = _Sums(view, [binary_loss(scores_n, y) * w, w, scores_n * w, y * w])
        self._sums.add(*_within_users(view, scores_n, self._sums.units))
        self._ranks = _Ranks(view, scores_n)

    def at(self, counts_U: np.ndarray) -> dict[str, float]:
        loss, weight, predicted, observed, area, impressions = self._sums.at(counts_U)
        return {
            "auc": self._ranks.area(counts_U) / (observed * (weight - observed)),
            "gauc": area / impressions,
            "log_loss": loss / weight,
            "calibration": predicted / observed,
        }


class _Ranks:
    """A view's rows in the order of their scores: what AUC needs of them, whatever the counts."""

    def __init__(self, view: View, scores_n: np.ndarray):
        positive_n = view.label_n > 0.5
        order = np.argsort(scores_n, kind="stable")
        negatives, positives = order[~positive_n[order]], order[positive_n[order]]
        sorted_scores = scores_n[negatives]
        self._negative_unit = view.unit_n[negatives]
        self._positive_unit = view.unit_n[positives]
        self._negative_weight = view.weight_n[negatives]
        self._positive_weight = view.weight_n[positives]
        self._below = np.searchsorted(sorted_scores, scores_n[positives], "left")
        self._up_to = np.searchsorted(sorted_scores, scores_n[positives], "right")
        self._has_ties = bool((self._below != self._up_to).any())
        self._has_weights = bool((view.weight_n != 1).any())
        self._cumulated = np.zeros(len(negatives) + 1)

    def area(self, counts_U: np.ndarray) -> float:
        """Weight of the pairs in right order, ties half."""
        negative = counts_U.take(self._negative_unit)
        positive = counts_U.take(self._positive_unit)
        if self._has_weights:
            negative *= self._negative_weight
            positive *= self._positive_weight
        np.cumsum(negative, out=self._cumulated[1:])
        area = positive @ self._cumulated.take(self._below)
        if self._has_ties:
            area = (area + positive @ self._cumulated.take(self._up_to)) / 2
        return float(area)


def _within_users(
    view: View, scores_n: np.ndarray, units: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each unit's AUC times impressions, and impressions; 0 for units without both classes."""
    area_u, impressions_u = np.zeros(len(units)), np.zeros(len(units))
    users = view.in_user_n
    unit_n = view.unit_n[users]
    area, positive, negative = areas(
        scores_n[users], view.label_n[users], unit_n, view.weight_n[users]
    )
    both = (positive > 0) & (negative > 0)
    at = np.searchsorted(units, np.unique(unit_n)[both])
    impressions = (positive + negative)[both]
    area_u[at] = area[both] / (positive * negative)[both] * impressions
    impressions_u[at] = impressions
    return area_u, impressions_u
