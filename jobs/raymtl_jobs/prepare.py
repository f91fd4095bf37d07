"""`raymtl prepare`: raw parquet to a training log."""

from typing import Annotated

import typer

from raymtl.errors import InputError
from raymtl_jobs import names
from raymtl_jobs.options import Address, ConfigName, DryRun, Overrides
from raymtl_jobs.output import say, say_result, show_config
from raymtl_jobs.quiet import ray_session

Like = Annotated[
    str | None,
    typer.Option(
        metavar="LOG|RUN", help="Take over the transforms of this log, run or checkpoint."
    ),
]
ExtendVocab = Annotated[
    str | None,
    typer.Option(metavar="LOG|RUN", help="Take them over and give new values rows of their own."),
]


def prepare(
    config: ConfigName,
    out: Annotated[str, typer.Argument(help="Folder or URL to make for the log.")],
    overrides: Overrides = None,
    like: Like = None,
    extend_vocab: ExtendVocab = None,
    address: Address = None,
    dry_run: DryRun = False,
) -> None:
    """Turn raw parquet into a training log: joins, vocabularies, transforms, splits."""
    from raymtl.data.prepare_config import PrepareConfig

    if like is not None and extend_vocab is not None:
        raise InputError(
            "transforms cannot be taken over as they are and extended",
            f"--like {like} --extend-vocab {extend_vocab}",
            "one of the two",
            "leave one out",
        )
    made = names.load(PrepareConfig, config, overrides or [], "prepare")
    if dry_run:
        show_config(made)
        sources = ", ".join(source.name for source in made.sources)
        say(f"would read {sources} and write {', '.join(made.split_names)} to {out}")
        return
    from raymtl.data.prepare import prepare as prepare_log

    with ray_session(address):
        result = prepare_log(made, out, like or extend_vocab, extend=extend_vocab is not None)
    for split, values in result["splits"].items():
        say(f"{split}: {values['rows']:,} rows in {values['url']}")
    say_result(f"{result['url']}/result.json")
