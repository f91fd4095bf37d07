"""The report's pictures: each function draws one panel and returns it as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from raymtl.analysis.bootstrap import NOISE
from raymtl.analysis.curves import Line, Reliability
from raymtl.analysis.gains import Difference
from raymtl.analysis.svg import FAINT, INK, inline, marker, model_color, panel, source_color

RARE = 0.1
"""A task whose mean prediction is below this gets logarithmic axes in its calibration curve."""


@dataclass(frozen=True)
class Named:
    """Something of a model, with the model's number, which decides colour and marker."""

    label: str
    number: int


def gains(differences: Sequence[tuple[Named, Difference]], name: str, title: str, axis: str) -> str:
    """A line per model: its gain and interval."""
    with panel(0.9 + 0.24 * len(differences)) as (figure, axes):
        _intervals(axes, [(None, d) for d in differences])
        axes.set_xlabel(axis)
        return inline(figure, name, f"{title}: {axis}, a dot and its 95 % interval per model")


def gains_by_bin(
    bins: Sequence[tuple[str, Sequence[tuple[Named, Difference]]]],
    name: str,
    title: str,
    axis: str,
) -> str:
    """A block per bin, in it a line per model."""
    entries = [(heading if i == 0 else "", d) for heading, ds in bins for i, d in enumerate(ds)]
    with panel(1.0 + 0.17 * len(entries) + 0.14 * len(bins)) as (figure, axes):
        _intervals(axes, entries)
        axes.set_xlabel(axis)
        return inline(figure, name, f"{title}: {axis} by bin of users, 95 % intervals")


def _intervals(axes: Axes, entries: Sequence[tuple[str | None, tuple[Named, Difference]]]) -> None:
    """Dots with intervals from the top down; a heading opens a block, without one y has models."""
    at, ticks = 0.0, []
    for heading, (model, d) in entries:
        if heading:
            at += 1.0 if ticks else 0.0
        if heading is None or heading:
            ticks.append((at, model.label if heading is None else heading))
        if d.value is not None:
            color = model_color(model.number)
            if d.low is not None and d.high is not None:
                axes.plot([d.low, d.high], [at, at], color=color, solid_capstyle="butt")
            axes.plot([d.value], [at], marker(model.number), color=color)
        at += 1.0
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.axvspan(-NOISE, NOISE, color=FAINT, linewidth=0)
    axes.set_ylim(at - 0.4, -0.6)
    axes.set_yticks([t for t, _ in ticks], [text for _, text in ticks])
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(axis="y", length=0)


def calibration(curves: Sequence[tuple[Named, Reliability]], name: str, task: str) -> str:
    """Observed rate against mean prediction, a line per model."""
    every = [v for _, c in curves for v in (*c.predicted, *c.observed)]
    positive = [v for v in every if v > 0]
    logarithmic = bool(positive) and float(np.mean([np.mean(c.observed) for _, c in curves])) < RARE
    with panel() as (figure, axes):
        ends = [min(positive) if logarithmic else 0.0, max(every)]
        axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle="--")
        for model, curve in curves:
            kept = [(p, o) for p, o in zip(curve.predicted, curve.observed, strict=True)]
            kept = [(p, o) for p, o in kept if not logarithmic or (p > 0 and o > 0)]
            _line(axes, model, [p for p, _ in kept], [o for _, o in kept])
        if logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_xlabel(f"{task}: mean prediction")
        axes.set_ylabel("observed rate")
        return inline(figure, name, f"Calibration of {task}: observed rate by mean prediction")


def losses(curves: Sequence[tuple[Named, Line, Line]], name: str, task: str) -> str:
    """Log loss over steps: training dashed, validation with markers."""
    with panel() as (figure, axes):
        for model, train, valid in curves:
            color = model_color(model.number)
            axes.plot(train.steps, train.values, color=color, linestyle=":", linewidth=1.2)
            _line(axes, model, valid.steps, valid.values)
        # The first reports are far above the rest, and would press them flat.
        late = [v for _, train, valid in curves for v in (*train.values[1:], *valid.values)]
        if late:
            room = 0.05 * (max(late) - min(late)) or 0.01
            axes.set_ylim(min(late) - room, max(late) + room)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("step")
        axes.set_ylabel(f"{task}: loss")
        return inline(figure, name, f"Loss of {task} over steps, training and validation")


def gates(shares: Sequence[tuple[str, Line]], name: str, title: str) -> str:
    """Gate mass per source over steps, stacked to 1."""
    steps = sorted(set.intersection(*(set(line.steps) for _, line in shares)))
    values = [[line.values[line.steps.index(step)] for step in steps] for _, line in shares]
    with panel(2.3) as (figure, axes):
        bottom = np.zeros(len(steps))
        for number, share in enumerate(values):
            top = bottom + share
            color = source_color(number)
            if len(steps) == 1:
                axes.bar([str(steps[0])], share, bottom=bottom, color=color, width=0.5)
            else:
                axes.fill_between(steps, bottom, top, color=color, linewidth=0)
            bottom = top
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        if len(steps) > 1:
            axes.set_xlim(steps[0], steps[-1])
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel(f"{title}: step")
        return inline(figure, name, f"Gate mass of {title} by source over steps")


def _line(axes: Axes, model: Named, x: Sequence[float], y: Sequence[float]) -> None:
    color, sign = model_color(model.number), marker(model.number)
    axes.plot(x, y, color=color, marker=sign, linewidth=1.2, markersize=3.5)
