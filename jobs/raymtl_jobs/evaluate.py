"""`raymtl evaluate`: a checkpoint's metrics on a log."""

import json
import os
from typing import Annotated

import typer

from raymtl.config import LaunchSection
from raymtl_jobs.options import Address, Calibrated, DryRun, LogUrl, Where, Which, Workers
from raymtl_jobs.output import say, show_drift, show_metrics, write_result
from raymtl_jobs.scoring import require_room, results_folder, show_plan

Out = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Default: result.json in RUN/evaluate/<name of the log>."),
]


def evaluate(
    where: Where,
    *,
    log: LogUrl,
    checkpoint: Which = "best",
    workers: Workers = 1,
    address: Address = None,
    out: Out = None,
    calibrated: Calibrated = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Measure a run's checkpoint on a log: AUC, GAUC, log loss, calibration per task."""
    launch = LaunchSection(num_workers=workers, address=address)
    if dry_run:
        show_plan(where, checkpoint, log, launch, labels=True)
        return
    from raymtl.run import choose
    from raymtl.scoring import Pick
    from raymtl.scoring import evaluate as evaluate_on_ray
    from raymtl.storage import absolute

    where = absolute(where)
    choose(where, checkpoint)
    folder, _, name = (out or f"{results_folder(where, log)}/result.json").rpartition("/")
    require_room(folder or ".")
    result = evaluate_on_ray(where, log, launch, Pick(checkpoint, calibrated), say)
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        show_metrics(result["metrics"], f"{result['rows']:,} rows of {log}")
        show_drift(result["drift"], log)
    write_result(folder or os.curdir, name, result)
