"""`raymtl study`: models x seeds on one log, searched alike, compared with intervals."""

import typer

from raymtl_jobs import names
from raymtl_jobs.compare import show
from raymtl_jobs.options import Address, ConfigName, DryRun, Overrides
from raymtl_jobs.output import INTERRUPTED, say, say_result, show_config


def study(
    config: ConfigName,
    overrides: Overrides = None,
    address: Address = None,
    dry_run: DryRun = False,
) -> None:
    """Train models with several seeds, after the same small search for each, and compare them."""
    from raymtl.study.config import StudyConfig
    from raymtl.study.plan import folder_of, searched

    name = f"{config}_study" if f"{config}_study" in names.shipped() else config
    made = names.load(StudyConfig, name, overrides or [], "study")
    grid = searched(made)
    folder = folder_of(made)
    if dry_run:
        show_config(made)
        finals = len(made.models) * len(made.seeds)
        first = " (and pretrain for each model and seed)" if made.pretrain is not None else ""
        say(f"would search {len(grid)} runs, train {finals} final ones{first}")
        say(f"and compare them in {folder}")
        return
    from raymtl.study.conduct import conduct

    try:
        found = conduct(made, address, say)
    except (KeyboardInterrupt, SystemExit):
        say(f"stopped; the same command goes on, with what is finished in {folder}")
        raise typer.Exit(INTERRUPTED) from None
    show(found)
    say(f"report: {folder}/report.html")
    say_result(f"{folder}/result.json")
