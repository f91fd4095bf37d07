"""`raymtl export`: a checkpoint as one folder that a server scores with, without raymtl."""

from typing import Annotated

import typer

from raymtl_jobs.options import Calibrated, Where, Which
from raymtl_jobs.output import say, say_result


def export(
    where: Where,
    *,
    out: Annotated[str, typer.Option(help="New folder or URL for the serving artifact.")],
    checkpoint: Which = "best",
    calibrated: Calibrated = False,
) -> None:
    """Write a self-contained serving folder: program, tables, vocabularies, scorer.py."""
    from raymtl.artifact.export import export as write_artifact
    from raymtl.storage import absolute

    result = write_artifact(absolute(where), absolute(out), checkpoint, calibrated)
    if result["warning"]:
        say(f"warning: requests must be rows of the prepared log: {result['warning']}")
    forms = " and ".join(result["forms"])
    say(f"exported {result['checkpoint']}: requests of form {forms}, golden requests agree")
    say_result(f"{result['out']}/manifest.json")
