"""Curves: reliability of the predictions, and what a run's metric lines show over its steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymtl.analysis.views import View

NUM_QUANTILES = 15
"""Points of a reliability curve, each of as many rows."""


@dataclass(frozen=True)
class Reliability:
    """Mean prediction and observed rate in quantiles of the predictions, lowest first."""

    predicted: list[float]
    observed: list[float]


@dataclass(frozen=True)
class Line:
    """A metric over steps."""

    steps: list[int]
    values: list[float]


def reliability(view: View, scores_n: np.ndarray) -> Reliability | None:
    """The curve of a task's rows, weighted; null for a regression or fewer rows than quantiles."""
    if view.kind != "binary" or len(scores_n) < NUM_QUANTILES:
        return None
    parts = np.array_split(np.argsort(scores_n, kind="stable"), NUM_QUANTILES)

    def means(values_n: np.ndarray) -> list[float]:
        return [float(np.average(values_n[p], weights=view.weight_n[p])) for p in parts]

    return Reliability(means(scores_n), means(view.label_n))


def mean_reliability(curves: Sequence[Reliability]) -> Reliability:
    """The mean over seeds, quantile by quantile."""
    predicted = np.mean([c.predicted for c in curves], axis=0)
    observed = np.mean([c.observed for c in curves], axis=0)
    return Reliability(predicted.tolist(), observed.tolist())


def line(runs: Sequence[list[dict[str, Any]]], key: str) -> Line:
    """A key of the metric lines over steps, the mean over the runs that reported it at a step."""
    at: dict[int, list[float]] = {}
    for lines in runs:
        for values in lines:
            if isinstance(values.get(key), int | float):
                at.setdefault(values["step"], []).append(float(values[key]))
    steps = sorted(at)
    return Line(steps, [float(np.mean(at[step])) for step in steps])


def gate_keys(lines: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Layer, task and source of every `gate/<layer>/<task>/<source>` of a run, in their order."""
    keys = dict.fromkeys(key for values in lines for key in values if key.startswith("gate/"))
    parts = [key.split("/", 3) for key in keys]
    return [(p[1], p[2], p[3]) for p in parts if len(p) == 4]
