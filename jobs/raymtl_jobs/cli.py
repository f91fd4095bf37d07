"""The command line: `raymtl VERB …`, one file per verb. Ray and torch load inside the verbs."""

import importlib.metadata
from typing import Annotated

import typer

from raymtl.auth import use_token
from raymtl_jobs.calibrate import calibrate
from raymtl_jobs.compare import compare
from raymtl_jobs.convert import convert
from raymtl_jobs.doctor import doctor
from raymtl_jobs.evaluate import evaluate
from raymtl_jobs.export import export
from raymtl_jobs.init import init
from raymtl_jobs.output import reporting
from raymtl_jobs.plan import plan
from raymtl_jobs.predict import predict
from raymtl_jobs.prepare import prepare
from raymtl_jobs.schema import schema
from raymtl_jobs.study import study
from raymtl_jobs.submit import CONTEXT, submit
from raymtl_jobs.synth import synth
from raymtl_jobs.train import train
from raymtl_jobs.tune import tune

app = typer.Typer(
    name="raymtl",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
VERBS = (
    init,
    synth,
    schema,
    convert,
    prepare,
    plan,
    train,
    evaluate,
    calibrate,
    predict,
    export,
    compare,
    study,
    tune,
    submit,
    doctor,
)
for verb in VERBS:
    context = CONTEXT if verb is submit else None
    app.command(verb.__name__, context_settings=context)(reporting(verb))


def version() -> str:
    """The installed version; a source tree on the path has none."""
    try:
        return importlib.metadata.version("raymtl")
    except importlib.metadata.PackageNotFoundError:
        return "from a source tree, not installed"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"raymtl {version()}")
        raise typer.Exit


@app.callback()
def raymtl(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and end."),
    ] = False,
) -> None:
    """Multi-task recommenders with task-specific embeddings on industrial logs, on Ray."""


def main() -> None:
    """The console script `raymtl`."""
    use_token()
    app()


if __name__ == "__main__":
    main()
