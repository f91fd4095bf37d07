"""What the searched keys did to the objective: groups with counts, and their importance."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymtl_tuning.config import Distribution, TuneConfig
from raymtl_tuning.records import Record

MOST_GROUPS = 4
"""Groups of about as many trials that values of a continuous key are put into."""
LEAST_TRIALS = 8
"""Below so many trials with a value no importance is given."""
REPEATS = 30


@dataclass(frozen=True)
class Group:
    """Trials of one value of a key, or of neighbouring ones."""

    label: str
    count: int
    mean: float
    best: float


@dataclass(frozen=True)
class Effects:
    """Of all keys, in the order of the space."""

    groups: dict[str, list[Group]]
    importance: dict[str, float]
    """Key -> share, summing to 1, the largest first; empty with few trials."""


def effects(config: TuneConfig, records: Sequence[Record]) -> Effects:
    """Groups and importance over the trials that have a value, stopped ones included."""
    known = [record for record in records if record.value is not None]
    pick = max if config.objective.maximised else min
    groups = {}
    for key, distribution in config.space.items():
        groups[key] = [
            Group(label, len(values), statistics.fmean(values), pick(values))
            for label, values in _grouped(key, distribution, known)
        ]
    return Effects(groups, importance(config, known))


def _grouped(
    key: str, distribution: Distribution, records: Sequence[Record]
) -> list[tuple[str, list[float]]]:
    """Label and objectives of each group, in the order of the values."""
    pairs = [(r.point[key], r.value) for r in records if key in r.point and r.value is not None]
    different = {json.dumps(value) for value, _ in pairs}
    if distribution.kind == "choice" or len(different) <= MOST_GROUPS + 2:
        order = _order(distribution, [value for value, _ in pairs])
        found = [(text_of(v), [o for value, o in pairs if value == v]) for v in order]
        return [(label, values) for label, values in found if values]
    pairs.sort(key=lambda pair: pair[0])
    cuts = np.array_split(np.arange(len(pairs)), MOST_GROUPS)
    return [
        (f"{pairs[c[0]][0]:.3g} to {pairs[c[-1]][0]:.3g}", [pairs[i][1] for i in c])
        for c in cuts
        if len(c)
    ]


def _order(distribution: Distribution, seen: Sequence[Any]) -> list[Any]:
    """A choice's values in the order of the config; others seen, sorted."""
    if distribution.kind == "choice":
        return list(distribution.arguments[0])
    return sorted(set(seen))


def text_of(value: Any) -> str:
    """A value as short text."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def importance(config: TuneConfig, records: Sequence[Record]) -> dict[str, float]:
    """How much a forest's fit of the objective loses when a key's values are permuted.

    Breiman's permutation importance by scikit-learn. A key that a condition leaves out of a trial
    has a value of its own there. It tells what moved the objective among these trials, not why.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    values = np.array([r.value for r in records if r.value is not None], float)
    if len(values) < LEAST_TRIALS or np.ptp(values) == 0:
        return {}
    x = np.array([[_number(key, d, r) for key, d in config.space.items()] for r in records])
    forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=config.seed, n_jobs=1)
    forest.fit(x, values)
    lost: Any = permutation_importance(
        forest, x, values, n_repeats=REPEATS, random_state=config.seed, n_jobs=1
    )
    shares = np.clip(lost["importances_mean"], 0, None)
    if not shares.sum():
        return {}
    pairs = zip(config.space, (shares / shares.sum()).tolist(), strict=True)
    return dict(sorted(pairs, key=lambda pair: -pair[1]))


def _number(key: str, distribution: Distribution, record: Record) -> float:
    """A value as a number whose order trees can cut: choices by their place."""
    if key not in record.point:
        return -1e9
    value = record.point[key]
    if distribution.kind == "choice":
        return float(distribution.arguments[0].index(value))
    return math.log(value) if "log" in distribution.kind else float(value)
