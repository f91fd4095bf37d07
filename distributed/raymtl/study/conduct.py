"""Conducts a study: search, seeds, scores, comparison. What is finished is not done again."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from raymtl.analysis import Cell, Comparison, Options, compare
from raymtl.cluster import session, side_by_side
from raymtl.config import LaunchSection, dump
from raymtl.errors import InputError, RankFailed
from raymtl.models import registry
from raymtl.preflight import check, indexed
from raymtl.progress import Show
from raymtl.run import Run
from raymtl.storage import Folder, absolute
from raymtl.study.cell import finished, score_cell, train_cell
from raymtl.study.config import StudyConfig
from raymtl.study.plan import PlannedRun, folder_of, planned, searched

Choices = dict[str, dict[str, Any]]
"""Label -> {"points": [[point, validation metric], …], "chosen": point}."""
DONE = "_result.json"
"""Written last into a folder of scores."""
CONFIG, CHOICES = "study.yaml", "choices.json"


def conduct(study: StudyConfig, address: str | None = None, show: Show = print) -> Comparison:
    """Runs a study to its end, or the part of it that is still to do.

    Args:
        address: Ray cluster to join; null starts a local one unless RAY_ADDRESS is set.
        show: takes lines for a person.

    Raises:
        InputError: before any run begins, where a config, log or file of scores does not do; or
            after all runs that can be made, where some could not.
    """
    grid = searched(study)
    _check(study, grid)
    folder = Folder(folder_of(study))
    folder.require_writable()
    folder.write(CONFIG, dump(study).encode())
    one = LaunchSection(address=address, num_workers=1, cpus_per_worker=study.cpus_per_run)
    with session(one):
        together = side_by_side(study.parallel, study.cpus_per_run, address)
        study = study.model_copy(update={"parallel": together})
        metrics = _train_all(study, grid, show)
        choices = _chosen(study, grid, metrics)
        folder.write(CHOICES, json.dumps(choices, indent=1).encode())
        final = [
            planned(study, model, choices[model.label]["chosen"], seed)
            for model in study.models
            for seed in study.seeds
        ]
        _train_all(study, final, show)
        cells = _score_all(study, final, show)
    cells += [Cell(e.label, e.seed, absolute(e.scores)) for e in study.external]
    config = final[0].config
    job = check(config)
    options = Options(
        baseline=study.compare.baseline, num_draws=study.compare.draws, ratio=study.compare.ratio
    )
    test = absolute(study.test)
    return compare(cells, test, job.schema, config.data.train, folder.url, options, show)


def _check(study: StudyConfig, grid: Sequence[PlannedRun]) -> None:
    """Raises InputError where a run could not begin, or the comparison could not be made."""
    for number, run in enumerate(grid):
        if run.config.data.valid is None:
            raise InputError(
                "a study needs a validation log",
                "base.data.valid is not given",
                "the log that searching and stopping look at",
                "add it; the test log is read once, by the final models",
            )
        job = check(run.config)
        if run.before is not None:
            check(run.before.config)
        if number == 0:
            indexed(absolute(study.test), job.schema)
    for external in study.external:
        place = absolute(external.scores)
        parent, _, name = place.rpartition("/")
        if Folder(parent).size(name) is None and not Folder(place).names():
            raise InputError(
                f"there are no scores of {external.label}",
                place,
                "a parquet file, or a folder of them",
                "make them first, or remove it from `external`",
            )


def _train_all(study: StudyConfig, runs: Sequence[PlannedRun], show: Show) -> list[float | None]:
    """Trains the runs that are not finished, each after the pretraining that it starts from.

    Returns:
        Each run's best validation metric, in order.
    """
    before = {run.before.config.name: run.before for run in runs if run.before is not None}
    waiting = [run for run in [*before.values(), *runs] if finished(run.config) is None]
    if waiting:
        show(f"{len(waiting)} runs to train, {study.parallel} side by side")
    began = time.monotonic()
    threads = study.cpus_per_run
    models = registry.registered()
    calls = [(train_cell, (run.config.model_dump(mode="json"), threads, models)) for run in waiting]
    place = {run.config.name: n for n, run in enumerate(waiting)}
    names = [run.before.config.name if run.before is not None else "" for run in waiting]
    after = {n: place[name] for n, name in enumerate(names) if name in place}
    errors = []
    for done, (number, outcome) in enumerate(_parallelly(study, calls, after), start=1):
        run = waiting[number]
        if "error" in outcome:
            errors.append(f"{run} seed {run.seed}: {outcome['error']}")
            show(f"failed: {errors[-1]}")
            continue
        left_s = (time.monotonic() - began) / done * (len(waiting) - done)
        left = f"about {left_s / 60:.0f} min left"
        show(f"[{done}/{len(waiting)}] {run} seed {run.seed}{_reached(run, outcome)}; {left}")
    _raise_if(errors)
    results = [finished(run.config) for run in runs]
    return [result["state"]["best_value"] if result else None for result in results]


def _reached(run: PlannedRun, outcome: dict[str, Any]) -> str:
    """Its best validation, or nothing where it was not validated."""
    state = outcome["result"]["state"]
    if state["best_value"] is None:
        return ""
    best = f"{run.config.validation.metric} {state['best_value']:.4f}"
    return f": {best} at step {state['best_step']}"


def _chosen(
    study: StudyConfig, grid: Sequence[PlannedRun], metrics: Sequence[float | None]
) -> Choices:
    choices: Choices = {}
    for model in study.models:
        mine = [
            (dict(run.point), metric, run.config.validation.higher_is_better)
            for run, metric in zip(grid, metrics, strict=True)
            if run.label == model.label
        ]
        known = [(m if higher else -m, n) for n, (_, m, higher) in enumerate(mine) if m is not None]
        best = max(known, key=lambda pair: pair[0])[1] if known else 0
        points = [[point, metric] for point, metric, _ in mine]
        choices[model.label] = {"points": points, "chosen": mine[best][0]}
    return choices


def _score_all(study: StudyConfig, runs: Sequence[PlannedRun], show: Show) -> list[Cell]:
    """Scores the test log with each final model, once."""
    test = absolute(study.test)
    scores = Folder(f"{folder_of(study)}/scores")
    digest = indexed(test, check(runs[0].config).schema).digest[:8]
    places = {run.config.name: f"{scores.url}/{run.config.name}-{digest}" for run in runs}
    waiting = [run for run in runs if Folder(places[run.config.name]).size(DONE) is None]
    calls = []
    for run in waiting:
        out = places[run.config.name]
        scores.delete(out.rpartition("/")[2])  # what an earlier process left half done
        arguments = (Run.of(run.config).url, test, out, study.cpus_per_run, registry.registered())
        calls.append((score_cell, arguments))
    errors = []
    for number, outcome in _parallelly(study, calls):
        run = waiting[number]
        if "error" in outcome:
            errors.append(f"{run} seed {run.seed}: {outcome['error']}")
            continue
        out = places[run.config.name]
        Folder(out).write(DONE, json.dumps(outcome["result"]).encode())
        show(f"scored the test log with {run} seed {run.seed}")
    _raise_if(errors)
    return [
        Cell(run.label, run.seed, places[run.config.name], Run.of(run.config).url) for run in runs
    ]


def _parallelly(
    study: StudyConfig,
    calls: Sequence[tuple[Callable[..., dict], tuple]],
    after: Mapping[int, int] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Makes calls in Ray tasks, so many at a time; yields number and outcome as they end.

    Args:
        after: number of a call -> the call that must have come to its end before. Where that one
            failed, the call is not made.
    """
    after = after or {}
    waiting, running, failed = list(range(len(calls))), {}, set()
    ended: set[int] = set()
    while waiting or running:
        for number in [n for n in waiting if after.get(n) in failed]:
            waiting.remove(number)
            yield number, {"error": "its pretraining failed"}
        ready = [n for n in waiting if n not in after or after[n] in ended]
        for number in ready[: (study.parallel or 1) - len(running)]:
            waiting.remove(number)
            function, arguments = calls[number]
            gpus = 1 if study.uses_gpu else 0
            task = ray.remote(num_cpus=study.cpus_per_run, num_gpus=gpus, max_retries=1)(function)
            running[task.remote(*arguments)] = number
        if not running:
            continue
        (first, *_), _ = ray.wait(list(running), num_returns=1)
        number = running.pop(first)
        try:
            outcome = ray.get(first)
        except RayError as error:
            outcome = {"error": f"{type(error).__name__}: {error}"}
        (failed if "error" in outcome else ended).add(number)
        yield number, outcome


def _raise_if(errors: Sequence[str]) -> None:
    if errors:
        raise RankFailed(
            "\n".join(["some runs of the study failed; the others are kept:", *errors])
        )
