"""`raymtl calibrate`: curves from a checkpoint's probabilities to the rates seen at them."""

from enum import StrEnum
from typing import Annotated

import typer

from raymtl.config import LaunchSection
from raymtl_jobs.options import Address, LogUrl, Where, Which, Workers
from raymtl_jobs.output import say, say_result


class Method(StrEnum):
    """Kinds of curves."""

    platt = "platt"
    isotonic = "isotonic"


def calibrate(
    where: Where,
    *,
    log: LogUrl,
    method: Annotated[
        Method, typer.Option(help="A line through log-odds, or any rising curve (needs more rows).")
    ] = Method.platt,
    checkpoint: Which = "best",
    workers: Workers = 1,
    address: Address = None,
) -> None:
    """Fit each task's calibration on a log the run was not trained on, and keep it with the run."""
    from rich.console import Console
    from rich.table import Table

    from raymtl.analysis.calibrate import calibrate as calibrate_on_ray
    from raymtl.storage import absolute

    launch = LaunchSection(num_workers=workers, address=address)
    result = calibrate_on_ray(absolute(where), log, method.value, launch, checkpoint, say)
    table = Table("task", "rows", "log loss", "after", "calibration", "after")
    for task, values in result["tasks"].items():
        cells = [
            f"{values[side][metric]:.4f}"
            for metric in ("log_loss", "calibration")
            for side in ("before", "after")
        ]
        table.add_row(task, f"{values['rows']:,}", *cells)
    Console().print(table)
    say_result(result["url"])
