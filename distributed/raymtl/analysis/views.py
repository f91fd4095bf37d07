"""The rows that are measured together: a task's observed rows, all of them or those of one bin."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from raymtl.analysis.bins import NUM_BINS, Pair
from raymtl.analysis.cells import Outcomes
from raymtl.scores import auc, calibration, gauc, log_loss, mae, rmse

ALL = "all"
"""The bin of a task's rows without a split."""


@dataclass(frozen=True)
class Units:
    """What the bootstrap draws: users; a row without one is drawn by itself."""

    unit_N: np.ndarray
    """int64, users first in the order of `users_U`, then the rows without a user."""
    users_U: np.ndarray
    """int64, sorted."""
    num_units: int

    @classmethod
    def of(cls, group_N: np.ndarray) -> "Units":
        users_U, unit_N = np.unique(group_N, return_inverse=True)
        alone_N = group_N == -1
        if not alone_N.any():
            return cls(unit_N, users_U, len(users_U))
        unit_N = unit_N - (unit_N > np.searchsorted(users_U, -1))
        users_U = users_U[users_U != -1]
        num_units = len(users_U) + int(alone_N.sum())
        unit_N[alone_N] = np.arange(len(users_U), num_units)
        return cls(unit_N, users_U, num_units)


@dataclass(frozen=True)
class View:
    """n rows of one task."""

    task: int
    pair: Pair | None
    bin: str
    row_n: np.ndarray
    """Their numbers in the log."""
    label_n: np.ndarray
    """float64"""
    weight_n: np.ndarray
    """float64, above 0."""
    unit_n: np.ndarray
    in_user_n: np.ndarray
    """bool, False where the row has no user; GAUC leaves it out."""
    kind: str

    def point(self, scores_n: np.ndarray) -> dict[str, float | int | None]:
        """The metrics of the scores of these rows."""
        y, w = self.label_n, self.weight_n
        rows: dict[str, float | int | None] = {"rows": len(y)}
        if self.kind == "regression":
            return {"rmse": rmse(scores_n, y, w), "mae": mae(scores_n, y, w)} | rows
        users = self.in_user_n
        within = gauc(scores_n[users], y[users], self.unit_n[users], w[users])
        return {
            "auc": auc(scores_n, y, w),
            "gauc": within.value,
            "gauc_users": within.num_users,
            "gauc_impressions": within.impressions,
            "log_loss": log_loss(scores_n, y, w),
            "calibration": calibration(scores_n, y, w),
            "positives": int((y > 0.5).sum()),
        } | rows


def views_of(outcomes: Outcomes, units: Units, pairs: list[Pair]) -> list[View]:
    """Every task whole, then each pair's two tasks in each of its bins that has rows."""
    whole = [_view(outcomes, units, task) for task in range(len(outcomes.task_names))]
    split: list[View] = []
    for pair in pairs:
        bin_N = _bin_of_rows(units, pair)
        names = pair.names(outcomes.task_names)
        for view in (whole[pair.a], whole[pair.b]):
            for number in range(NUM_BINS):
                kept_n = bin_N[view.row_n] == number
                if kept_n.any():
                    split.append(_cut(view, kept_n, pair=pair, bin=names[number]))
    return whole + split


def _bin_of_rows(units: Units, pair: Pair) -> np.ndarray:
    """int8 (N,); rows without a user have no history."""
    alone = np.full(units.num_units - len(units.users_U), NUM_BINS - 1, np.int8)
    return np.concatenate([pair.bin_U, alone])[units.unit_N]


def _view(outcomes: Outcomes, units: Units, task: int) -> View:
    row_n = np.flatnonzero(outcomes.weight_NT[:, task] > 0)
    unit_n = units.unit_N[row_n]
    return View(
        task,
        None,
        ALL,
        row_n,
        outcomes.labels_NT[row_n, task].astype(np.float64),
        outcomes.weight_NT[row_n, task].astype(np.float64),
        unit_n,
        unit_n < len(units.users_U),
        outcomes.kinds[task],
    )


def _cut(view: View, kept_n: np.ndarray, **changed: Any) -> View:
    arrays = {k: a[kept_n] for k, a in vars(view).items() if isinstance(a, np.ndarray)}
    return View(**{**vars(view), **arrays, **changed})
