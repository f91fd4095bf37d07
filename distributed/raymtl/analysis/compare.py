"""Compares cells on one log: metrics, gains with intervals, bins, and what the runs add."""

import json
from collections.abc import Callable, Sequence

import numpy as np

from raymtl.analysis import report, runs, tables
from raymtl.analysis.bins import Pair, pairs_of, read_history
from raymtl.analysis.bootstrap import Draws, metrics_of_draws
from raymtl.analysis.cells import Cell, Outcomes, read_outcomes, read_scores
from raymtl.analysis.comparison import BinCount, Comparison, Options
from raymtl.analysis.curves import Reliability, reliability
from raymtl.analysis.gains import Difference, Measured, differences
from raymtl.analysis.views import Units, View, views_of
from raymtl.data.log import LogIndex, read_index
from raymtl.data.ranges import dated
from raymtl.errors import InputError
from raymtl.schema import LogSchema
from raymtl.storage import Folder

SINGLE_TASK = "single_task"
Show = Callable[[str], None]


def compare(
    cells: Sequence[Cell],
    log: str,
    schema: LogSchema,
    train_log: str | None = None,
    out: str | None = None,
    options: Options = Options(),  # noqa: B008  frozen
    show: Show = print,
) -> Comparison:
    """Compares cells on one log.

    Args:
        cells: every model and seed; labels in the order the report shows them.
        log: URL of the log the scores are of.
        schema: tasks, labels and group of both logs.
        train_log: URL of the training log, for the comparable-sample analysis; null leaves it out.
        out: folder for result.json, cells.parquet and report.html; null writes nothing.
        show: takes lines for a person.

    Raises:
        InputError: scores that do not fit the log, a label that is not there, one cell twice, a
            log without labels, or no rows at all.
    """
    _check_cells(cells)
    models = [(cell.label, _model_of(cell)) for cell in cells]
    baseline = baseline_of(models, options.baseline)
    index = dated(read_index(log, schema), schema)
    outcomes = read_outcomes(index, schema)
    units = Units.of(outcomes.group_N)
    show(f"{index.num_rows:,} rows of {len(units.users_U):,} users in {log}")
    pairs, counts, positives = _bins(outcomes, units, schema, train_log, options)
    views = views_of(outcomes, units, pairs)
    draws = Draws(units.num_units, options.num_draws, options.seed)
    measured, curves = _measure(cells, outcomes, views, draws, show)
    labels = list(dict.fromkeys(cell.label for cell in cells))
    by_label = {label: [m for m in measured if m.cell.label == label] for label in labels}
    others = [label for label in labels if label != baseline]
    whole = [view for view in views if view.pair is None]
    found = Comparison(
        log=log,
        train_log=train_log,
        outcomes=outcomes,
        num_users=len(units.users_U),
        options=options,
        baseline=baseline,
        baseline_is_single_task=(baseline, SINGLE_TASK) in models,
        views=views,
        measured=measured,
        gains=[d for o in others for d in differences(views, by_label[o], by_label[baseline])],
        pairs=_all_pairs(whole, by_label),
        bins=counts,
        training_positives=positives,
        reliability=curves,
        training=[runs.read_training(cell.run) if cell.run else None for cell in cells],
    )
    if out is not None:
        write(found, out)
    return found


def _measure(
    cells: Sequence[Cell], outcomes: Outcomes, views: list[View], draws: Draws, show: Show
) -> tuple[list[Measured], list[list[Reliability | None]]]:
    """Each cell's metrics and reliability curves; one cell's scores are in memory at a time."""
    measured, curves = [], []
    for number, cell in enumerate(cells):
        show(f"{cell.name}: {len(views)} views, {draws.num} draws ({number + 1} of {len(cells)})")
        scores_NT = read_scores(cell, outcomes)
        points = [view.point(scores_NT[view.row_n, view.task]) for view in views]
        measured.append(Measured(cell, points, metrics_of_draws(views, scores_NT, draws)))
        curves.append([reliability(v, scores_NT[v.row_n, v.task]) for v in views if not v.pair])
    return measured, curves


def write(found: Comparison, out: str) -> None:
    """Writes result.json, cells.parquet and report.html into a folder."""
    folder = Folder(out)
    folder.write("cells.parquet", tables.cells_parquet(found))
    folder.write("report.html", report.page(found).encode())
    result = json.dumps(tables.result(found), indent=1, sort_keys=True)
    folder.write("result.json", (result + "\n").encode())


def _all_pairs(whole: list[View], by_label: dict[str, list[Measured]]) -> list[Difference]:
    """Views of whole tasks come first, so that they have their own numbers among all views."""
    labels = list(by_label)
    return [
        difference
        for i, label in enumerate(labels)
        for other in labels[:i]
        for difference in differences(whole, by_label[label], by_label[other])
    ]


def _bins(
    outcomes: Outcomes, units: Units, schema: LogSchema, train_log: str | None, options: Options
) -> tuple[list[Pair], list[BinCount], tuple[int, ...]]:
    if train_log is None or not outcomes.has_groups:
        return [], [], ()
    if options.ratio <= 1:
        raise InputError(
            "the ratio between bins is too small", f"{options.ratio:g}", "more than 1", "use 2"
        )
    history = read_history(_train_index(train_log, schema), schema, units.users_U)
    pairs = pairs_of(history, outcomes.kinds, options.ratio)
    counts = []
    for pair in pairs:
        for number, name in enumerate(pair.names(outcomes.task_names)):
            users = pair.bin_U == number
            row_N = np.append(users, np.zeros(units.num_units - len(users), bool))[units.unit_N]
            positive = (outcomes.labels_NT > 0.5) & (outcomes.weight_NT > 0) & row_N[:, None]
            found = positive.sum(axis=0)
            seen = int((users & history.seen_U).sum())
            both = (int(found[pair.a]), int(found[pair.b]))
            counts.append(
                BinCount((pair.a, pair.b), name, int(users.sum()), seen, int(row_N.sum()), both)
            )
    return pairs, counts, tuple(int(n) for n in history.positives_T)


def _train_index(train_log: str, schema: LogSchema) -> LogIndex:
    try:
        return dated(read_index(train_log, schema), schema)
    except InputError as error:
        do = "name the training log with --train-log, or leave the bins out with --train-log none"
        raise InputError(f"the training log: {error.what}", error.got, error.wanted, do) from None


def _check_cells(cells: Sequence[Cell]) -> None:
    if not cells:
        raise InputError("there is nothing to compare", "no cell", "one or more", "name runs")
    names = [cell.name for cell in cells]
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise InputError(
            "a model is given twice with one seed",
            "; ".join(doubles),
            "each model and seed once",
            "leave one out, or give one another name: LABEL=RUN",
        )


def baseline_of(models: Sequence[tuple[str, str]], wanted: str | None) -> str:
    """The label to take gains against.

    Args:
        models: label and model name of each cell.
        wanted: a label, or null for the single-task model; the first label where there is none.

    Raises:
        InputError: `wanted` is not there, or there are several single-task models.
    """
    labels = list(dict.fromkeys(label for label, _ in models))
    if wanted is not None:
        if wanted not in labels:
            raise InputError(
                "the baseline is not among the models",
                wanted,
                f"one of {', '.join(labels)}",
                "name one of them with --baseline, or add its runs",
            )
        return wanted
    single = list(dict.fromkeys(label for label, model in models if model == SINGLE_TASK))
    if len(single) > 1:
        raise InputError(
            "there is more than one single-task model",
            ", ".join(single),
            "one to take gains against",
            "name it with --baseline",
        )
    return single[0] if single else labels[0]


def _model_of(cell: Cell) -> str:
    """The name of its run's model; its label where it has no run."""
    return runs.model_name(cell.run) if cell.run else cell.label
