"""`raymtl tune`: Ray Tune searches keys of a training config."""

from typing import Annotated

import typer

from raymtl_jobs import names
from raymtl_jobs.options import Address, ConfigName, DryRun, Overrides
from raymtl_jobs.output import INTERRUPTED, say, say_result, show_config, show_metrics

Resume = Annotated[bool, typer.Option("--resume", help="Go on with the study that is there.")]


def tune(
    config: ConfigName,
    overrides: Overrides = None,
    resume: Resume = False,
    address: Address = None,
    dry_run: DryRun = False,
) -> None:
    """Search expert counts, gates or any other keys of a training config by Ray Tune."""
    from raymtl_tuning.config import TuneConfig

    made = names.load(TuneConfig, config, overrides or [], "tune")
    from raymtl_tuning.checks import checked
    from raymtl_tuning.records import StudyFolder

    folder = StudyFolder.of(made).url
    if dry_run:
        from raymtl_tuning.search import search

        made, _ = checked(made)
        show_config(made)
        total = search(made, [], {}).total
        say(f"would try {total} points with {made.seeds_per_trial} seeds each, in {folder}")
        return
    from raymtl_tuning.conduct import conduct

    try:
        found = conduct(made, address, resume, say)
    except (KeyboardInterrupt, SystemExit):
        say(f"stopped; the same command with --resume goes on, with what is finished in {folder}")
        raise typer.Exit(INTERRUPTED) from None
    best = found.best
    show_metrics(
        best.metrics, f"validation of trial {best.number}, the best of {len(found.records)}"
    )
    say(f"best config: {folder}/best.yaml")
    say(f"report: {folder}/report.html")
    say_result(f"{folder}/result.json")
