"""`raymtl synth`: a generated log with a known answer."""

from typing import Annotated

import typer

from raymtl_jobs import names
from raymtl_jobs.options import Address, ConfigName, DryRun, Overrides
from raymtl_jobs.output import say, show_config, write_result
from raymtl_jobs.quiet import ray_session


def synth(
    config: ConfigName,
    out: Annotated[str, typer.Argument(help="Folder or URL for the log.")],
    overrides: Overrides = None,
    address: Address = None,
    dry_run: DryRun = False,
) -> None:
    """Generate a log whose right answer is known: train/, valid/ and test/ below OUT."""
    from raymtl.config import override
    from raymtl.data.synthetic import parse_log, synthesise

    values, source = names.read(config, "synth")
    made = parse_log(override(values, overrides or []), source)
    if dry_run:
        show_config(made)
        say(f"would write a log of {made.rows:,} rows to {out}")
        return
    say(f"writing a log of {made.rows:,} rows to {out}")
    with ray_session(address):
        truth = synthesise(made, out)
    for split, rows in truth["rows"].items():
        say(f"{split}: {rows:,} rows in {out}/{split}")
    write_result(out, "result.json", {"log": out, **truth})
