"""The report on quality: metrics by task, gains, comparable samples, every pair of models."""

from raymtl.analysis import page as html
from raymtl.analysis import plots
from raymtl.analysis.bootstrap import NOISE
from raymtl.analysis.comparison import Comparison
from raymtl.analysis.gains import IN_AUC
from raymtl.analysis.page import count
from raymtl.analysis.report_parts import (
    gain_cell,
    gain_name,
    legend,
    metric_name,
    numbered,
    said,
    with_spread,
)
from raymtl.analysis.tables import pair_name, summary

DIGITS = {"calibration": 3, "gauc_users": 0}


def qualities(found: Comparison) -> list[str]:
    parts = [html.heading(2, "Quality by task")]
    for number, view in enumerate(found.views):
        if view.pair is None:
            task = found.outcomes.task_names[view.task]
            parts.append(html.table(*_quality(found, number, task)))
    return parts


def _quality(found: Comparison, view: int, task: str) -> tuple[str, list[str], list[list[str]]]:
    points = found.measured[0].points[view]
    metrics = [m for m in points if m not in ("gauc_impressions", "positives", "rows")]
    compared = [m for m in ("auc", "gauc", "rmse") if m in points and points[m] is not None]
    head = ["model", *(metric_name(m) for m in metrics)]
    head += [f"{gain_name(found)}, {metric_name(m)}" for m in compared]
    rows = []
    for label in found.labels:
        values = summary(found.of(label), view)
        row = [label, *(with_spread(values[m], DIGITS.get(m, 4)) for m in metrics)]
        row += [gain_cell(found, label, view, m) for m in compared]
        rows.append(row)
    positives = f", {count(points['positives'])} positives" if "positives" in points else ""
    caption = f"{task}: {count(points['rows'])} observed rows{positives}; mean ± spread over seeds"
    return caption, head, rows


def gains(found: Comparison) -> list[str]:
    if not found.gains:
        return []
    numbers, figures = numbered(found), []
    for metric in IN_AUC:
        for task, name in enumerate(found.outcomes.task_names):
            mine = [
                (numbers[d.model], d)
                for d in found.gains
                if d.pair is None and (d.task, d.metric) == (task, metric) and d.low is not None
            ]
            if mine:
                title = f"{name}, {metric_name(metric)}"
                svg = plots.gains(mine, f"gain-{metric}-{task}", title, gain_name(found))
                figures.append((svg, title))
    text = (
        f"Right of the line the model is better than {found.baseline}. Bars are 95 % intervals; "
        f"the band around 0 is ±{NOISE} AUC."
    )
    return [html.heading(2, "Gain by task"), html.paragraph(text), html.panels(figures)]


def bins(found: Comparison) -> list[str]:
    if not found.bins:
        return []
    ratio = found.options.ratio
    text = (
        "Users are split by what feedback they gave in the training log, relative to all its "
        "users. For tasks a and b: r = log((n_a + 2q) / (n_b + 2(1 − q))) − log(N_a / N_b), with n "
        "the user's positives, N those of all users, q = N_a / (N_a + N_b). "
        f"a >> b where r > log {ratio:g}, a << b where r < −log {ratio:g}, else comparable. No "
        "history: no positive of either task there. Formula and thresholds are ours."
    )
    parts = [html.heading(2, "Comparable samples"), html.paragraph(text), legend(found)]
    parts.append(
        html.paragraph(f"Training log: {found.train_log}; positives: {_totals(found)}.", "muted")
    )
    for pair in dict.fromkeys(c.pair for c in found.bins):
        parts += [html.heading(3, pair_name(found, pair).replace(", ", " and "))]
        parts += [_bin_counts(found, pair), html.panels(_bin_panels(found, pair), "two")]
        parts.append(html.details("The numbers", _bin_table(found, pair)))
    return parts


def _totals(found: Comparison) -> str:
    both = zip(found.outcomes.task_names, found.training_positives, strict=True)
    return ", ".join(f"{name} {n:,}" for name, n in both)


def _bin_counts(found: Comparison, pair: tuple[int, int]) -> str:
    a, b = (found.outcomes.task_names[t] for t in pair)
    head = ["bin", "users", "of them in training", "rows", f"{a} positives", f"{b} positives"]
    mine = [c for c in found.bins if c.pair == pair]
    numbers = [(c.users, c.users_seen, c.rows, *c.positives) for c in mine]
    rows = [[c.bin, *map(count, values)] for c, values in zip(mine, numbers, strict=True)]
    return html.table("Bins of this log", head, rows)


def _bin_panels(found: Comparison, pair: tuple[int, int]) -> list[tuple[str, str]]:
    numbers, figures = numbered(found), []
    names = [c.bin for c in found.bins if c.pair == pair]
    for metric in IN_AUC:
        for task in pair:
            blocks = []
            for name in names:
                mine = [
                    (numbers[d.model], d)
                    for d in found.gains
                    if (d.pair, d.task, d.bin, d.metric) == (pair, task, name, metric)
                ]
                blocks.append((name, [m for m in mine if m[1].low is not None]))
            blocks = [block for block in blocks if block[1]]
            if blocks:
                title = f"{found.outcomes.task_names[task]}, {metric_name(metric)}"
                name = f"bin-{pair[0]}-{pair[1]}-{task}-{metric}"
                svg = plots.gains_by_bin(blocks, name, title, gain_name(found))
                figures.append((svg, title))
    return figures


def _bin_table(found: Comparison, pair: tuple[int, int]) -> str:
    views = [(i, v) for i, v in enumerate(found.views) if v.pair and (v.pair.a, v.pair.b) == pair]
    rows = []
    for number, view in views:
        for label in found.labels:
            values = summary(found.of(label), number)
            row = [f"{found.outcomes.task_names[view.task]}, {view.bin}", label]
            row += [with_spread(values[m], 4) for m in IN_AUC]
            rows.append([*row, *(gain_cell(found, label, number, m) for m in IN_AUC)])
    gain = gain_name(found)
    head = ["task and bin", "model", "AUC", "GAUC", f"{gain}, AUC", f"{gain}, GAUC"]
    return html.table("Metrics by bin; mean ± spread over seeds", head, rows)


def pairs(found: Comparison) -> list[str]:
    mine = [d for d in found.pairs if d.metric in IN_AUC]
    if not mine:
        return []
    tasks = found.outcomes.task_names
    keys = dict.fromkeys((d.model, d.reference) for d in mine)
    shown = list(dict.fromkeys((d.task, d.metric) for d in mine))
    by_key = {(d.model, d.reference, d.task, d.metric): d for d in mine}
    rows = [
        [f"{model} − {reference}", *(said(by_key[model, reference, t, m]) for t, m in shown)]
        for model, reference in keys
    ]
    head = ["models", *(f"{tasks[t]} {metric_name(m)}" for t, m in shown)]
    made = html.table("Difference, 95 % interval and verdict, all rows", head, rows)
    return [html.heading(2, "Every pair"), html.details(f"{len(rows)} pairs", made)]
