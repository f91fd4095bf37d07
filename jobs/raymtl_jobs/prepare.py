"""`raymtl prepare`: raw parquet to a training log."""

from typing import Annotated

import typer

from raymtl_jobs import names
from raymtl_jobs.options import Address, ConfigName, DryRun, Overrides
from raymtl_jobs.output import say, say_result, show_config
from raymtl_jobs.quiet import ray_session


def prepare(
    config: ConfigName,
    out: Annotated[str, typer.Argument(help="Folder or URL to make for the log.")],
    overrides: Overrides = None,
    address: Address = None,
    dry_run: DryRun = False,
) -> None:
    """Turn raw parquet into a training log: joins, vocabularies, transforms, splits."""
    from raymtl.data.prepare_config import PrepareConfig

    made = names.load(PrepareConfig, config, overrides or [], "prepare")
    if dry_run:
        show_config(made)
        sources = ", ".join(source.name for source in made.sources)
        say(f"would read {sources} and write {', '.join(made.split_names)} to {out}")
        return
    from raymtl.data.prepare import prepare as prepare_log

    with ray_session(address):
        result = prepare_log(made, out)
    for split, values in result["splits"].items():
        say(f"{split}: {values['rows']:,} rows in {values['url']}")
    say_result(f"{result['url']}/result.json")
