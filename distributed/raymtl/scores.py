"""AUC, GAUC, log loss, calibration and errors of regressions, vectorised.

All take numpy arrays of one length; a value that does not exist is None, never NaN.
"""

import math
from typing import NamedTuple

import numpy as np

CLIP = 1e-7
"""Log loss clips probabilities to [CLIP, 1 - CLIP]; 1e-7 as in the official STEM code."""


class Gauc(NamedTuple):
    """AUC within users."""

    value: float | None
    num_users: int
    """Users with both classes: those that take part."""
    impressions: float
    """Their rows, or their rows' weights; what each user's AUC is weighted by."""


def auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    """Area under the ROC curve, exact; tied scores count half. None with one class only."""
    groups = np.zeros(len(scores), np.int64)
    return gauc(scores, labels, groups, weights).value


def gauc(
    scores: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray | None = None,
) -> Gauc:
    """Mean over users of their AUC, weighted by their impressions; users with both classes only.

    Args:
        scores: finite, any real type.
        labels: 0 or 1.
        groups: int64 user of each row.
        weights: of the rows, at least 0; None weighs all 1.
    """
    area, positives, negatives = areas(scores, labels, groups, weights)
    both = (positives > 0) & (negatives > 0)
    impressions = (positives + negatives)[both]
    value = area[both] / (positives * negatives)[both]
    total = float(impressions.sum())
    return Gauc(ratio((value * impressions).sum(), total), int(both.sum()), total)


def areas(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per group: weight of the pairs in right order, of the positives, of the negatives.

    Groups in the order of `np.unique(groups)`.
    """
    if len(scores) == 0:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    if not np.isfinite(scores).all():
        raise ValueError("AUC needs finite scores")
    order = np.lexsort((scores, groups))
    score, group = scores[order], groups[order]
    weight = np.ones(len(order)) if weights is None else weights[order].astype(np.float64)
    positive = np.where(labels[order] > 0.5, weight, 0.0)
    group_begins = np.append(True, group[1:] != group[:-1])
    tie_begins = group_begins | np.append(True, score[1:] != score[:-1])
    ties = np.flatnonzero(tie_begins)
    positive_of_tie = np.add.reduceat(positive, ties)
    negative_of_tie = np.add.reduceat(weight - positive, ties)
    first_ties = np.flatnonzero(group_begins[ties])
    num_ties = np.diff(first_ties, append=len(ties))
    below = np.cumsum(negative_of_tie) - negative_of_tie
    below -= np.repeat(below[first_ties], num_ties)
    in_order = positive_of_tie * (below + negative_of_tie / 2)
    return (
        np.add.reduceat(in_order, first_ties),
        np.add.reduceat(positive_of_tie, first_ties),
        np.add.reduceat(negative_of_tie, first_ties),
    )


def log_loss(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float | None:
    """Mean binary cross-entropy, probabilities clipped to [1e-7, 1 - 1e-7]; None without rows."""
    return _mean(binary_loss(probabilities.astype(np.float64), labels), weights)


def calibration(
    predicted: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float | None:
    """Sum of the predictions over sum of the labels, above 1 where too much is predicted.

    None without positives.
    """
    weight = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    return ratio((predicted * weight).sum(), (labels * weight).sum())


def rmse(
    predicted: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float | None:
    """Root of the mean squared error; None without rows."""
    mean = _mean((predicted.astype(np.float64) - labels) ** 2, weights)
    return None if mean is None else math.sqrt(mean)


def mae(
    predicted: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float | None:
    """Mean absolute error; None without rows."""
    return _mean(np.abs(predicted.astype(np.float64) - labels), weights)


def _mean(values: np.ndarray, weights: np.ndarray | None) -> float | None:
    weight = np.ones(len(values)) if weights is None else weights.astype(np.float64)
    return ratio((values * weight).sum(), weight.sum())


def binary_loss(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log loss of each row."""
    p = np.clip(probabilities, CLIP, 1 - CLIP)
    return -(labels * np.log(p) + (1 - labels) * np.log1p(-p))


def ratio(numerator: float, denominator: float) -> float | None:
    """The quotient, None where the denominator is 0."""
    return float(numerator / denominator) if denominator else None
