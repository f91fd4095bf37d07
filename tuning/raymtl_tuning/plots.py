"""The pictures of a study's report: each function draws one panel and returns it as inline SVG."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from raymtl.analysis.svg import FAINT, INK, inline, model_color, panel, source_color
from raymtl_tuning.config import Distribution
from raymtl_tuning.effects import Group, text_of
from raymtl_tuning.records import Record

STOPPED, FINISHED, BEST = model_color(0), model_color(1), model_color(2)
MOST_TICKS = 6
SIGNS = {("finished",): (FINISHED, "o"), ("stopped", "cut"): (STOPPED, "x")}
HEAT = 0.6
"""Opacity of the best cell of a heat map: text on it stays readable, by day and by night."""


def values_of(records: Sequence[Record]) -> list[float]:
    """The objectives there are."""
    return [record.value for record in records if record.value is not None]


def costs_of(records: Sequence[Record]) -> list[float]:
    """The costs there are."""
    return [record.cost for record in records if record.cost is not None]


def history(records: Sequence[Record], axis: str, maximised: bool) -> str:
    """The objective by trial, finished and stopped, and the best so far; failures at the foot."""
    with panel() as (figure, axes):
        for statuses, (color, sign) in SIGNS.items():
            some = [r for r in records if r.status in statuses and r.value is not None]
            axes.plot([r.number for r in some], values_of(some), sign, color=color)
        known = [r for r in records if r.value is not None]
        best = (np.maximum if maximised else np.minimum).accumulate(values_of(known))
        axes.step([r.number for r in known], best, where="post", color=BEST)
        failed = [r.number for r in records if r.status == "failed"]
        foot = np.full(len(failed), axes.get_ylim()[0])
        axes.plot(failed, foot, "v", color=INK, clip_on=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("trial")
        axes.set_ylabel(axis)
        return inline(figure, "history", f"{axis} by trial, and the best so far")


def curves(lines: Sequence[tuple[list[int], list[float], bool]], axis: str) -> str:
    """The objective over a trial's rows; the best trial's in its own colour."""
    with panel() as (figure, axes):
        for rows, values, is_best in sorted(lines, key=lambda line: line[2]):
            color, width = (BEST, 1.8) if is_best else (STOPPED, 0.7)
            axes.plot(
                rows,
                values,
                color=color,
                linewidth=width,
                alpha=1.0 if is_best else 0.6,
                marker="." if len(rows) == 1 else "",
            )
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("rows trained")
        axes.set_ylabel(axis)
        return inline(figure, "curves", f"{axis} over rows of every trial")


def effect(key: str, distribution: Distribution, records: Sequence[Record], axis: str) -> str:
    """The objective by the values of a key: a dot per trial, bars at the means of choices."""
    known = [r for r in records if key in r.point and r.value is not None]
    with panel(2.3) as (figure, axes):
        if distribution.kind == "choice":
            place = _choices(axes, key, distribution.arguments[0], known)
        else:
            place = [r.point[key] for r in known]
            if "log" in distribution.kind:
                axes.set_xscale("log")
                axes.xaxis.set_minor_formatter(NullFormatter())
            elif "int" in distribution.kind:
                axes.xaxis.set_major_locator(MaxNLocator(MOST_TICKS, integer=True))
        for statuses, (color, sign) in SIGNS.items():
            some = [(p, r) for p, r in zip(place, known, strict=True) if r.status in statuses]
            values = values_of([r for _, r in some])
            axes.plot([p for p, _ in some], values, sign, color=color, alpha=0.8)
        axes.set_xlabel(key)
        axes.set_ylabel(axis)
        name = "effect-" + key.replace(".", "-").replace("_", "-")
        return inline(figure, name, f"{axis} by {key}")


def _choices(
    axes: Axes, key: str, choices: Sequence[Any], records: Sequence[Record]
) -> list[float]:
    """Marks the choices with their counts and means; returns where each record stands."""
    place = [choices.index(r.point[key]) for r in records]
    labels = []
    for number, choice in enumerate(choices):
        mine = values_of([r for r, p in zip(records, place, strict=True) if p == number])
        labels.append(f"{text_of(choice)}\n{len(mine)}")
        if mine:
            axes.hlines(statistics.fmean(mine), number - 0.3, number + 0.3, color=BEST)
    axes.set_xticks(range(len(choices)), labels)
    axes.set_xlim(-0.6, len(choices) - 0.4)
    return [float(p) for p in place]


def importances(shares: dict[str, float]) -> str:
    """A bar per key."""
    with panel(0.7 + 0.24 * len(shares)) as (figure, axes):
        axes.barh(range(len(shares)), list(shares.values()), color=FINISHED)
        axes.set_yticks(range(len(shares)), list(shares))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("importance, share")
        return inline(figure, "importance", "Importance of the searched keys")


def pareto(records: Sequence[Record], kept: Sequence[Record], axis: str, cost: str) -> str:
    """Cost and objective of every trial, those on the front joined."""
    known = [r for r in records if r.value is not None and r.cost is not None]
    with panel() as (figure, axes):
        axes.plot(costs_of(known), values_of(known), "o", color=STOPPED)
        line = sorted(kept, key=lambda r: r.cost or 0.0)
        axes.plot(costs_of(line), values_of(line), "o-", color=BEST)
        for record in line:
            assert record.cost is not None and record.value is not None
            axes.annotate(f" {record.number}", (record.cost, record.value), color=INK)
        axes.set_xlabel(cost)
        axes.set_ylabel(axis)
        return inline(figure, "pareto", f"{axis} against {cost}; the Pareto front is joined")


def heat(
    x: tuple[str, Sequence[str]],
    y: tuple[str, Sequence[str]],
    cells: dict[tuple[int, int], Group],
    maximised: bool,
) -> str:
    """The mean objective of each pair of values of two keys, and how many trials it is of."""
    means = [cell.mean for cell in cells.values()]
    low, high = min(means), max(means)
    with panel(0.9 + 0.42 * len(y[1])) as (figure, axes):
        for (i, j), cell in cells.items():
            share = (cell.mean - low) / (high - low) if high > low else 0.5
            share = share if maximised else 1 - share
            axes.fill_between(
                [i - 0.5, i + 0.5],
                j - 0.5,
                j + 0.5,
                color=source_color(0),
                alpha=0.05 + HEAT * share,
                linewidth=0,
            )
            axes.text(
                i, j, f"{cell.mean:.4f}\n({cell.count})", ha="center", va="center", fontsize=7
            )
        axes.set_xlim(-0.5, len(x[1]) - 0.5)
        axes.set_ylim(len(y[1]) - 0.5, -0.5)
        axes.set_xticks(range(len(x[1])), x[1])
        axes.set_yticks(range(len(y[1])), y[1])
        axes.grid(visible=False)
        axes.set_facecolor(FAINT)
        axes.set_xlabel(x[0])
        axes.set_ylabel(y[0])
        return inline(figure, "heat", f"Mean objective by {x[0]} and {y[0]}")
