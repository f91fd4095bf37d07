"""report.html of a tuning study: one page, no scripts, nothing fetched."""

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from raymtl.analysis import page as html
from raymtl.analysis.page import count, fixed, short
from raymtl.analysis.runs import read_training
from raymtl_tuning import objective, plots
from raymtl_tuning.config import Distribution
from raymtl_tuning.effects import Group, text_of
from raymtl_tuning.records import RUNS, Record
from raymtl_tuning.results import Found

MOST_SHOWN = 20
MOST_CELLS = 8
"""Values of a key that a heat map has a row or column for."""
Axis = tuple[str, list[str]]
"""A key and the texts of its values."""
NAMES = {"auc": "AUC", "gauc": "GAUC", "log_loss": "log loss", "rmse": "RMSE", "mae": "MAE"}
WORDS = {"parameters": "parameters", "rows_per_s": "rows/s"}


def page(found: Found, tasks: Sequence[str]) -> str:
    """The report as HTML.

    Args:
        tasks: whose metrics the best trial is shown with.
    """
    title = f"Tuning {found.config.name}"
    body = [html.heading(1, title), *_opening(found), *_best(found, tasks), *_progress(found)]
    body += [*_front(found), *_effects(found), *_trials(found), *_failures(found), *_method(found)]
    return html.page(title, body)


def axis_of(found: Found) -> str:
    """What the objective is called."""
    metric = NAMES[found.config.objective.metric]
    words = {"mean": f"mean {metric}", "weighted": f"weighted {metric}"}
    words |= {"worst": f"worst task's {metric}", "gain": f"MTL gain, {metric}"}
    return words[found.config.objective.name]


def _opening(found: Found) -> list[str]:
    ended = Counter(record.status for record in found.records)
    parts = [f"{number} {status}" for status, number in ended.items()]
    config, best = found.config, found.best
    seeds = f"{config.seeds_per_trial} seeds each" if config.seeds_per_trial > 1 else "one seed"
    return [
        html.paragraph(
            f"{len(found.records)} trials ({', '.join(parts)}), {seeds}, searched by "
            f"{config.search.method}, scheduler {config.scheduler.name}; "
            f"{short(sum(r.rows for r in found.records))} rows trained."
        ),
        html.paragraph(
            f"Best: trial {best.number}, {axis_of(found)} {fixed(best.value, 5)}"
            + (f" ± {fixed(best.spread, 5)} over seeds" if best.spread is not None else "")
            + ", on the validation log. The best of many is flattered by its luck: train "
            "best.yaml with fresh seeds and measure it on a test log before you believe it."
        ),
    ]


def _best(found: Found, tasks: Sequence[str]) -> list[str]:
    base = found.config.base
    rows = [
        [key, text_of(value), text_of(_at(base, key))] for key, value in found.best.point.items()
    ]
    parts = [html.heading(2, "The best point")]
    parts.append(html.table("Searched keys of best.yaml", ["key", "best", "in base"], rows))
    metrics = found.best.metrics
    names = [m for m in NAMES if any(f"{task}/{m}" in metrics for task in tasks)]
    lines = [[task, *(fixed(metrics.get(f"{task}/{name}")) for name in names)] for task in tasks]
    if names:
        parts.append(html.table("Its validation", ["task", *names], lines))
    return parts


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return "default" if values is None else values


def _progress(found: Found) -> list[str]:
    axis = axis_of(found)
    maximised = found.config.objective.maximised
    figures = [
        (
            plots.history(found.records, axis, maximised),
            "● finished, × stopped early at what it had reached, ▼ failed; the line is the best "
            "so far.",
        )
    ]
    lines = [(*_curve(found, r), r.number == found.best.number) for r in found.records]
    lines = [line for line in lines if line[0]]
    if lines:
        figures.append(
            (plots.curves(lines, axis), "Every trial's validations; the best in colour.")
        )
    if found.effects.importance:
        caption = "What a forest's fit of the objective loses without each key (by permutation)."
        figures.append((plots.importances(found.effects.importance), caption))
    caption = "Mean over trials, their number in brackets; deeper is better."
    maps = (_heat(found, *pair) for pair in _pairs(found))
    figures += [(map_, caption) for map_ in maps if map_ is not None]
    return [html.heading(2, "How it went"), html.panels(figures, "two")]


def _curve(found: Found, record: Record) -> tuple[list[int], list[float]]:
    """Rows and objective of the validations of a trial's first seed."""
    runs = [n for n in found.folder.runs_of(record.number) if n.endswith(f"-{found.config.seed}")]
    rows, values = [], []
    for name in runs:
        for line in read_training(f"{found.folder.url}/{RUNS}/{name}").lines:
            metrics = {k.removeprefix("valid/"): v for k, v in line.items() if "valid/" in k}
            reached = objective.value(found.config.objective, metrics) if metrics else None
            if reached is not None:
                rows.append(line["rows"])
                values.append(reached)
    return rows, values


def _front(found: Found) -> list[str]:
    cost = found.config.objective.cost
    if cost is None:
        return []
    picture = plots.pareto(found.records, found.front, axis_of(found), WORDS[cost])
    rows = [
        [f"trial {r.number}", fixed(r.value, 5), short(r.cost), _settings(r)] for r in found.front
    ]
    head = ["trial", axis_of(found), WORDS[cost], "point"]
    return [
        html.heading(2, "Pareto front"),
        html.panels([(picture, "No trial is better than those on the line in both.")], "two"),
        html.table("The front; best.yaml has the first", head, rows),
    ]


def _effects(found: Found) -> list[str]:
    axis = axis_of(found)
    figures, rows = [], []
    for key, distribution in found.config.space.items():
        groups = found.effects.groups[key]
        if not groups:
            continue
        caption = f"{key}: under each choice its number of trials, — its mean."
        if distribution.kind != "choice":
            caption = f"{key}: {sum(g.count for g in groups)} trials."
        figures.append((plots.effect(key, distribution, found.records, axis), caption))
        rows += [
            [f"{key} = {g.label}", count(g.count), fixed(g.mean, 5), fixed(g.best, 5)]
            for g in groups
        ]
    head = ["values", "trials", f"mean {axis}", "best"]
    note = (
        "Averages over all other keys as they came: an adaptive search tries good values more "
        "often, and trials that were stopped early count with what they had reached."
    )
    table = html.table("The objective by values of each key", head, rows)
    return [
        html.heading(2, "What each key did"),
        html.paragraph(note),
        html.panels(figures),
        html.details("The numbers", table),
    ]


def _pairs(found: Found) -> list[tuple[Axis, Axis]]:
    """What heat maps show: a number of experts by a setting of gates, and the most important keys.

    Only keys with few values; of several the most important.
    """
    space = found.config.space
    order = [*found.effects.importance, *(k for k in space if k not in found.effects.importance)]
    axes = [(key, labels) for key in order if 1 < len(labels := _labels(found, key)) <= MOST_CELLS]
    experts = [axis for axis in axes if "experts" in axis[0]]
    gates = [axis for axis in axes if "gate" in axis[0]]
    pairs = [(experts[0], gates[0])] if experts and gates else []
    if len(axes) > 1 and {axes[0][0], axes[1][0]} != {axis[0] for pair in pairs for axis in pair}:
        pairs.append((axes[0], axes[1]))
    return pairs


def _heat(found: Found, x: Axis, y: Axis) -> str | None:
    """The objective by two keys; null where no trial with a value has both."""
    (x_key, x_labels), (y_key, y_labels) = x, y
    pick = max if found.config.objective.maximised else min
    groups: dict[tuple[int, int], list[float]] = {}
    for record in found.records:
        if record.value is not None and x_key in record.point and y_key in record.point:
            place = (
                x_labels.index(text_of(record.point[x_key])),
                y_labels.index(text_of(record.point[y_key])),
            )
            groups.setdefault(place, []).append(record.value)
    cells = {
        place: Group("", len(values), statistics.fmean(values), pick(values))
        for place, values in groups.items()
    }
    return plots.heat(x, y, cells, found.config.objective.maximised) if cells else None


def _labels(found: Found, key: str) -> list[str]:
    """The values of a key that a heat map can have a place for; none of a continuous one."""
    distribution: Distribution = found.config.space[key]
    if distribution.kind == "choice":
        return list(dict.fromkeys(map(text_of, distribution.arguments[0])))
    seen = {r.point[key] for r in found.records if key in r.point and r.value is not None}
    return [text_of(v) for v in sorted(seen)] if "int" in distribution.kind else []


def _trials(found: Found) -> list[str]:
    sign = -1 if found.config.objective.maximised else 1
    known = sorted(
        (r for r in found.records if r.value is not None), key=lambda r: sign * (r.value or 0.0)
    )
    rows = [
        [
            f"trial {r.number}",
            fixed(r.value, 5),
            fixed(r.spread, 5),
            r.status,
            short(r.rows),
            f"{r.time_s:,.0f} s",
            _settings(r),
        ]
        for r in known[:MOST_SHOWN]
    ]
    head = ["trial", axis_of(found), "± over seeds", "ended", "rows", "time", "point"]
    caption = f"The best {len(rows)} of {len(known)}; all are in trials.parquet"
    return [html.heading(2, "Trials"), html.table(caption, head, rows)]


def _settings(record: Record) -> str:
    return ", ".join(f"{k.rpartition('.')[2]} {text_of(v)}" for k, v in record.point.items())


def _failures(found: Found) -> list[str]:
    failed = [r for r in found.records if r.status == "failed"]
    if not failed:
        return []
    rows = [
        [f"trial {r.number}", (r.reason or "").split("\n")[0][:120], _settings(r)] for r in failed
    ]
    head = ["trial", "reason", "point"]
    return [html.heading(2, "Failures"), html.table("Trials without a value", head, rows)]


def _method(found: Found) -> list[str]:
    metric = found.config.base.get("validation", {}).get("metric", "auc")
    lines = [
        f"The objective of a training is that of its best validation by {metric}, whose "
        "checkpoint it keeps; a trial's is the mean over its seeds. No test log was read.",
        f"Study seed {found.config.seed}; trainings' seeds "
        f"{', '.join(map(str, found.config.seeds))}. Space: "
        + json.dumps({k: {d.kind: d.arguments} for k, d in found.config.space.items()}),
    ]
    return [html.heading(2, "How it was measured"), *(html.paragraph(line) for line in lines)]
