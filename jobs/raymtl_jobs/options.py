"""Arguments and options that several verbs have, each said once."""

from typing import Annotated

import typer

ConfigName = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A shipped name (see `raymtl init`) or a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Dotted keys over the config's own values."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the resolved config and what would run; write nothing."),
]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to join; RAY_ADDRESS does the same. Default: a local Ray."),
]
Where = Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="A run or checkpoint folder.")]
LogUrl = Annotated[str, typer.Option("--log", help="The log: parquet under a path or URL.")]
Which = Annotated[
    str, typer.Option("--checkpoint", help="Of a run: best, last, or a checkpoint's name.")
]
Calibrated = Annotated[
    bool, typer.Option("--calibrated", help="After the checkpoint's calibration.")
]
Workers = Annotated[int, typer.Option(min=1, help="Ray Train workers.")]
