"""`raymtl schema`: a draft of a log's schema, its doubts marked."""

from pathlib import Path
from typing import Annotated

import typer

from raymtl_jobs.init import write_new
from raymtl_jobs.output import say


def schema(
    log: Annotated[str, typer.Argument(help="The log: parquet under a path or URL.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write; LOG/schema.yaml is where train looks."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="A label; may repeat. Default: guess")
    ] = None,
) -> None:
    """Draft a schema from a log's footers and a sample; check what it marks before training."""
    from raymtl.data.draft import draft_yaml

    text = draft_yaml(log, labels=label)
    if out is None:
        print(text, end="")
        say(f"read it, mend what is marked, and save it as {log.rstrip('/')}/schema.yaml")
        return
    write_new(out, text)
    say(f"wrote {out}; read it and mend what is marked, then: raymtl train stem data.train={log}")
