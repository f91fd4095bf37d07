"""`raymtl train`: a config to a trained run."""

import json
from typing import Annotated, Any

import typer

from raymtl.config import TrainConfig, override, parse
from raymtl.errors import InputError
from raymtl_jobs import names
from raymtl_jobs.options import Address, DryRun, Overrides
from raymtl_jobs.output import INTERRUPTED, say, say_result, show_config, show_metrics

Resume = Annotated[
    str | None, typer.Option(metavar="RUN", help="Go on with this run folder, under its config.")
]
InitFrom = Annotated[
    str | None,
    typer.Option(metavar="RUN", help="Start from this run's or checkpoint's weights."),
]
OrResume = Annotated[
    bool,
    typer.Option("--or-resume", help="If a run of this name was begun already, go on with it."),
]
OptionalName = Annotated[
    str | None,
    typer.Argument(metavar="CONFIG", help="A shipped name or a YAML file; not with --resume."),
]


def train(
    config: OptionalName = None,
    overrides: Overrides = None,
    resume: Resume = None,
    init_from: InitFrom = None,
    or_resume: OrResume = False,
    address: Address = None,
    dry_run: DryRun = False,
) -> None:
    """Train a model on Ray, from a config, or go on with a run."""
    given = [*([config] if config else []), *(overrides or [])]
    if address is not None:
        given.append(f"launch.address={address}")
    if init_from is not None:
        given.append(f"init_from={json.dumps(init_from)}")
    from raymtl.run import located

    resolved, resuming = of_run(resume, given) if resume else of_config(given), bool(resume)
    if or_resume and not resuming:
        resolved, resuming = begun(resolved)
    resolved = located(resolved)
    if dry_run:
        _show_plan(resolved, resuming)
        return
    result = _train(resolved, resuming)
    metrics = result["state"]["best_metrics"]
    if metrics:
        show_metrics(metrics, f"validation at step {result['state']['best_step']}, the best")
    say(f"run: {result['run']}   ended by {result['state']['stopped']}")
    say_result(f"{result['run']}/result.json")


def of_config(given: list[str]) -> TrainConfig:
    """The config named first, with the overrides after it.

    Raises:
        InputError: no config is named, it is refused, or it does not say what to train on.
    """
    if not given or "=" in given[0]:
        raise InputError(
            "no config is named",
            f"raymtl train {' '.join(given)}".strip(),
            "a config, then overrides: raymtl train stem data.train=LOG",
            "name a shipped config (`raymtl init` lists them) or a file, or --resume RUN",
        )
    name, *overrides = given
    values, source = names.read(name, "train")
    values = override(values, overrides)
    data = values.get("data") or {}
    if isinstance(data, dict) and not data.get("train"):
        raise InputError(
            "the config does not say what to train on",
            f"no data.train   ({source})",
            "path or URL of a training log with a schema.yaml beside it",
            f"add it: raymtl train {name} data.train=LOG; `raymtl schema LOG` drafts a schema",
        )
    return parse(TrainConfig, values, source)


def of_run(run: str, overrides: list[str]) -> TrainConfig:
    """A run's own config with overrides, and with the place where the run lies now."""
    from raymtl.run import CONFIG, Run
    from raymtl.storage import absolute

    for item in overrides:
        if "=" not in item or item.partition("=")[0] in ("name", "storage"):
            raise InputError(
                "a resumed run keeps its config, name and place",
                item,
                "overrides of other keys only, such as launch.num_workers=1",
                "leave it out, or train anew without --resume",
            )
    folder = run.rstrip("/")
    values = Run(folder).read_config().model_dump(mode="json")
    storage, _, name = absolute(folder).rpartition("/")
    values = override(values, overrides) | {"storage": storage or "/", "name": name}
    return parse(TrainConfig, values, f"{folder}/{CONFIG}")


def begun(config: TrainConfig) -> tuple[TrainConfig, bool]:
    """The config, and whether its run was begun; then with the start that was chosen for it."""
    from raymtl.run import Run

    run = Run.of(config)
    if not run.exists():
        return config, False
    return config.model_copy(update={"init_from": run.read_config().init_from}), True


def _show_plan(config: TrainConfig, resuming: bool) -> None:
    from raymtl.preflight import check_run, describe
    from raymtl.source import order_of, planned_steps

    job, run = check_run(config, resuming)
    show_config(job.config)
    steps = planned_steps(job.config, order_of(job.config, job.train).steps_per_epoch)
    say(describe(job))
    fewest, most = config.launch.fewest_workers, config.launch.most_workers
    workers = f"{most}" if fewest == most else f"{fewest} to {most}"
    say(f"would train {steps:,} steps with {workers} workers into {run.url}")


def _train(config: TrainConfig, resuming: bool) -> dict[str, Any]:
    from raymtl.launch import train as train_on_ray
    from raymtl.run import Run

    try:
        return train_on_ray(config, resume=resuming, show=say)
    except (KeyboardInterrupt, SystemExit):
        run = Run.of(config)
        if run.exists():
            say(f"stopped; go on with: raymtl train --resume {run.url}")
        else:
            say("stopped before the run began")
        raise typer.Exit(INTERRUPTED) from None
