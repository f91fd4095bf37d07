"""`raymtl predict`: a checkpoint's scores for every row of a log, as parquet."""

from typing import Annotated

import typer

from raymtl.config import LaunchSection
from raymtl_jobs.options import Address, Calibrated, DryRun, LogUrl, Where, Which, Workers
from raymtl_jobs.output import say, write_result
from raymtl_jobs.scoring import show_plan


def predict(
    where: Where,
    *,
    log: LogUrl,
    out: Annotated[str, typer.Option(help="New folder or URL for the parquet files.")],
    key: Annotated[
        list[str], typer.Option(metavar="COLUMN", help="Column that names a row; may repeat.")
    ],
    checkpoint: Which = "best",
    calibrated: Calibrated = False,
    workers: Workers = 1,
    address: Address = None,
    dry_run: DryRun = False,
) -> None:
    """Score every row of a log: parquet with the key columns and one column per task."""
    launch = LaunchSection(num_workers=workers, address=address)
    if dry_run:
        show_plan(where, checkpoint, log, launch, labels=False)
        say(f"would write columns {', '.join(key)} and one per task to {out}")
        return
    from raymtl.scoring import Pick
    from raymtl.scoring import predict as predict_on_ray
    from raymtl.storage import absolute

    pick = Pick(checkpoint, calibrated)
    result = predict_on_ray(absolute(where), log, absolute(out), tuple(key), launch, pick, say)
    # Readers of a parquet folder, pandas' and pyarrow's too, pass over names with an underscore.
    write_result(absolute(out), "_result.json", result)
