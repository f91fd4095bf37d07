"""`raymtl predict`: a checkpoint's scores for every row of a log, as parquet."""

from typing import Annotated

import typer

from raymtl_jobs.options import Address, DryRun, LogUrl, Overrides, Where, Which, Workers
from raymtl_jobs.output import say, write_result
from raymtl_jobs.scoring import launch_of, show_plan


def predict(
    where: Where,
    overrides: Overrides = None,
    log: LogUrl = ...,
    out: Annotated[str, typer.Option(help="New folder or URL for the parquet files.")] = ...,
    key: Annotated[
        list[str], typer.Option(metavar="COLUMN", help="Column that names a row; may repeat.")
    ] = ...,
    checkpoint: Which = "best",
    workers: Workers = None,
    address: Address = None,
    dry_run: DryRun = False,
) -> None:
    """Score every row of a log: parquet with the key columns and one column per task."""
    launch = launch_of(overrides or [], workers, address)
    if dry_run:
        show_plan(where, checkpoint, log, launch, labels=False)
        say(f"would write columns {', '.join(key)} and one per task to {out}")
        return
    from raymtl.scoring import predict as predict_on_ray
    from raymtl_jobs.train import absolute

    result = predict_on_ray(where, log, absolute(out), tuple(key), launch, checkpoint, say)
    write_result(absolute(out), "result.json", result)
