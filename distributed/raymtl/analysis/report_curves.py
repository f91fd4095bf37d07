"""The report's curves: calibration, loss and gates over training."""

from raymtl.analysis import page as html
from raymtl.analysis import plots
from raymtl.analysis.comparison import Comparison
from raymtl.analysis.curves import gate_keys, line, mean_reliability
from raymtl.analysis.report_parts import legend, metric_name, numbered
from raymtl.analysis.svg import NUM_SOURCE_COLORS


def calibration(found: Comparison) -> list[str]:
    numbers, figures = numbered(found), []
    for task, name in enumerate(found.outcomes.task_names):
        curves = []
        for label, named in numbers.items():
            both = zip(found.measured, found.reliability, strict=True)
            mine = [r[task] for m, r in both if m.cell.label == label]
            known = [curve for curve in mine if curve is not None]
            if known:
                curves.append((named, mean_reliability(known)))
        if curves:
            svg = plots.calibration(curves, f"calibration-{task}", name)
            figures.append((svg, f"{name}, 15 quantiles of the predictions, mean over seeds"))
    text = (
        "Above the dashed line more happens than was predicted. Axes of rare tasks are logarithmic."
    )
    found_any = [html.heading(2, "Calibration"), html.paragraph(text), legend(found)]
    return [*found_any, html.panels(figures)] if figures else []


def losses(found: Comparison) -> list[str]:
    numbers, figures = numbered(found), []
    for task, name in enumerate(found.outcomes.task_names):
        metric = "log_loss" if found.outcomes.kinds[task] == "binary" else "rmse"
        curves = []
        for label, named in numbers.items():
            lines = [t.lines for t in found.trained(label)]
            train, valid = (line(lines, f"{at}{name}/{metric}") for at in ("", "valid/"))
            if train.steps or valid.steps:
                curves.append((named, train, valid))
        if curves:
            svg = plots.losses(curves, f"loss-{task}", name)
            figures.append(
                (svg, f"{name}, {metric_name(metric)}, mean over the seeds that got there")
            )
    text = "Dotted: training, over the rows since the report before. With markers: validation."
    found_any = [html.heading(2, "Loss over steps"), html.paragraph(text), legend(found)]
    return [*found_any, html.panels(figures)] if figures else []


def gates(found: Comparison) -> list[str]:
    parts = []
    for label in found.labels:
        runs = [t.lines for t in found.trained(label)]
        keys = gate_keys(runs[0]) if runs else []
        sources = list(dict.fromkeys(source for _, _, source in keys))
        figures = []
        for layer, task in dict.fromkeys((layer, task) for layer, task, _ in keys):
            there = [s for one, two, s in keys if (one, two) == (layer, task)]
            shares = [(s, line(runs, f"gate/{layer}/{task}/{s}")) for s in there]
            number = found.labels.index(label)
            name = f"gate-{number}-{len(figures)}"
            svg = plots.gates(shares, name, f"{task}, layer {layer}")
            figures.append((svg, f"{label}: {task}, layer {layer}"))
        if figures:
            colors = [f"var(--s{i % NUM_SOURCE_COLORS})" for i in range(len(sources))]
            entries = [(s, "■", color) for s, color in zip(sources, colors, strict=True)]
            parts += [html.heading(3, label), html.legend(entries), html.panels(figures)]
    text = (
        "Share of each task's gate that goes to each source, from the bottom up as in the legend; "
        "mean over seeds."
    )
    return [html.heading(2, "Gates over training"), html.paragraph(text), *parts] if parts else []
