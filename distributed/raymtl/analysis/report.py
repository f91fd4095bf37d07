"""report.html of a comparison: one page with tables and pictures, no scripts, nothing fetched."""

from raymtl.analysis import page as html
from raymtl.analysis.bootstrap import NOISE
from raymtl.analysis.comparison import Comparison
from raymtl.analysis.page import count, fixed, short
from raymtl.analysis.report_curves import calibration, gates, losses
from raymtl.analysis.report_gains import bins, gains, pairs, qualities
from raymtl.analysis.report_parts import SIGNS
from raymtl.analysis.tables import summary


def page(found: Comparison) -> str:
    """The report as HTML."""
    title = f"Comparison on {found.log.rstrip('/').rpartition('/')[2]}"
    body = [html.heading(1, title), *_opening(found), *qualities(found)]
    body += [*gains(found), *bins(found), *_costs(found), *calibration(found)]
    body += [*losses(found), *gates(found), *pairs(found), *_method(found)]
    return html.page(title, body)


def _opening(found: Comparison) -> list[str]:
    seeds = sorted({m.cell.seed for m in found.measured})
    users = f" of {found.num_users:,} users" if found.outcomes.has_groups else ""
    lines = [
        f"{found.outcomes.num_rows:,} rows{users} in {found.log}. {len(found.labels)} models, "
        f"{len(found.measured)} runs, seeds {', '.join(map(str, seeds))}."
    ]
    if not found.baseline_is_single_task:
        lines.append(
            f"No single-task model is among them, or another baseline was asked for: differences "
            f"are to {found.baseline}, and are no MTL gain."
        )
    return [html.paragraph(text) for text in lines]


def _costs(found: Comparison) -> list[str]:
    if not any(found.training):
        return []
    rows = []
    for label in found.labels:
        trained = found.trained(label)
        speeds = [t.rows_per_s for t in trained if t.rows_per_s is not None]
        first = trained[0] if trained else None
        speed = short(sum(speeds) / len(speeds)) if speeds else "–"
        workers = count(first.num_workers) if first else "–"
        sizes = (first.num_dense, first.num_table) if first else (None, None)
        quality = [_mean_auc(found, label)]
        rows.append([label, *map(short, sizes), speed, workers, *quality])
    head = [
        "model",
        "dense parameters",
        "table parameters",
        "training rows/s",
        "workers",
        "mean AUC",
    ]
    caption = (
        "Size of the model, and the median speed of its runs' reports on the machine they ran on"
    )
    return [html.heading(2, "Cost"), html.table(caption, head, rows)]


def _mean_auc(found: Comparison, label: str) -> str:
    whole = [i for i, v in enumerate(found.views) if v.pair is None and v.kind == "binary"]
    values = [summary(found.of(label), i)["auc"]["mean"] for i in whole]
    known = [v for v in values if v is not None]
    return fixed(sum(known) / len(known)) if known else "–"


def _method(found: Comparison) -> list[str]:
    options = found.options
    unit = "users" if found.outcomes.has_groups else "rows (the log has no group column)"
    signs = ", ".join(f"{sign} {name}" for name, sign in SIGNS.items() if name != "unknown")
    lines = [
        f"Intervals: {options.num_draws:,} bootstrap draws of {unit} with replacement, seed "
        f"{options.seed}, the same draws for every run; percentiles 2.5 and 97.5. Rows without a "
        "user are drawn one by one.",
        "Differences are means over the seeds that both models have (over each one's own seeds "
        "where they share none). An interval covers the choice of users, not what training leaves "
        "to chance: that is in the spread over seeds, a standard deviation, and in a second "
        "interval over pairs of seeds (Student's t, from three pairs on; in result.json), which "
        "is shown where the first leaves out 0 and it does not. MTL gain (PLE, eq. 11) is "
        "positive where the model is better, for log loss too.",
        f"Verdicts: {signs}. Within noise: the interval holds 0 and its half-width is at most "
        f"{NOISE} AUC. Undecided: it holds 0 and is wider.",
        "GAUC: AUC within each user, weighted by impressions, over users with both classes "
        "(participating users). Calibration: sum of predictions over sum of labels.",
    ]
    return [html.heading(2, "How it was measured"), *(html.paragraph(text) for text in lines)]
