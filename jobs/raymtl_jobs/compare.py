"""`raymtl compare`: trained runs side by side on one log, with intervals."""

from typing import TYPE_CHECKING, Annotated

import typer

from raymtl.config import LaunchSection
from raymtl.errors import InputError
from raymtl_jobs.options import Address, DryRun, Which, Workers
from raymtl_jobs.output import say, say_result
from raymtl_jobs.scoring import require_room

if TYPE_CHECKING:
    from raymtl.analysis import Comparison
    from raymtl.analysis.runs import NamedRun

NONE = "none"
Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN|LABEL=RUN...", help="Run folders; seeds of one model share a label."
    ),
]
Log = Annotated[
    str | None, typer.Option("--log", help="Log to compare on. Default: the runs' data.valid.")
]
TrainLog = Annotated[
    str | None,
    typer.Option(
        help="Log whose feedback bins the users. Default: the runs' data.train; none: no bins."
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option(metavar="LABEL", help="Take gains against it. Default: the single_task model."),
]
Ratio = Annotated[
    float, typer.Option(help="A user has relatively more of a task from this many times the usual.")
]


def compare(
    runs: Runs,
    *,
    log: Log = None,
    train_log: TrainLog = None,
    baseline: Baseline = None,
    checkpoint: Which = "best",
    ratio: Ratio = 2.0,
    draws: Annotated[int, typer.Option(min=1, help="Bootstrap draws of users.")] = 1000,
    workers: Workers = 1,
    address: Address = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Default: compare/<name of the log>.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Compare runs: metrics, gain over single-task, comparable samples, intervals, a report."""
    from raymtl.analysis import Options
    from raymtl.analysis.compare import baseline_of
    from raymtl.analysis.compare import compare as compare_cells
    from raymtl.analysis.predictions import cells_of
    from raymtl.analysis.runs import named_runs
    from raymtl.storage import absolute

    named = named_runs(runs)
    where = absolute(log or _same(named, "valid", "--log"))
    train = _train_log(named, train_log)
    options = Options(baseline=baseline, num_draws=draws, ratio=ratio)
    folder = absolute(out or f"compare/{where.rpartition('/')[2].removesuffix('.parquet')}")
    against = baseline_of([(run.label, run.config.model.name) for run in named], baseline)
    say(f"{len(named)} runs of {', '.join(dict.fromkeys(run.label for run in named))}")
    if dry_run:
        say(f"would compare them on {where} against {against} into {folder}")
        return
    require_room(folder)
    launch = LaunchSection(num_workers=workers, address=address)
    cells = cells_of(named, where, f"{folder}/scores", launch, checkpoint, say)
    found = compare_cells(cells, where, named[0].schema, train, folder, options, say)
    show(found)
    say(f"report: {folder}/report.html")
    say_result(f"{folder}/result.json")


def _same(named: "list[NamedRun]", key: str, option: str) -> str:
    """A log of the runs' configs, where they have one in common."""
    logs = sorted({getattr(run.config.data, key) or "none" for run in named})
    if len(logs) > 1 or logs == ["none"]:
        raise InputError(
            f"the runs have no data.{key} in common",
            ", ".join(logs),
            "one log for all of them",
            f"name it with {option}",
        )
    return logs[0]


def _train_log(named: "list[NamedRun]", given: str | None) -> str | None:
    from raymtl.storage import absolute

    if given == NONE:
        return None
    return absolute(given or _same(named, "train", "--train-log"))


def show(found: "Comparison") -> None:
    """A table on stdout: a line per task and model."""
    import sys

    from rich.console import Console
    from rich.table import Table

    from raymtl.analysis.tables import summary

    table = Table("task", "model", title=f"{found.outcomes.num_rows:,} rows of {found.log}")
    there = {metric for points in found.measured[0].points for metric in points}
    metrics = [m for m in ("auc", "gauc", "log_loss", "calibration", "rmse") if m in there]
    for metric in metrics:
        table.add_column(metric.replace("_", " "), justify="right", no_wrap=True)
    table.add_column(f"AUC gain over {found.baseline}", no_wrap=True)
    gains = {(d.model, d.task): d for d in found.gains if d.pair is None and d.metric == "auc"}
    for number, view in enumerate(found.views):
        for label in found.labels if view.pair is None else ():
            values = summary(found.of(label), number)
            cells = [values[m]["mean"] if m in values else None for m in metrics]
            gain = gains.get((label, view.task))
            said = f"{gain.value:+.4f} {gain.words}" if gain and gain.value is not None else ""
            numbers = ["-" if c is None else f"{c:.4f}" for c in cells]
            table.add_row(found.outcomes.task_names[view.task], label, *numbers, said)
    Console(width=None if sys.stdout.isatty() else 110).print(table)
