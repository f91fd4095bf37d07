"""Conducts a tuning study: checks, trials by Ray Tune, results. A killed one goes on."""

import contextlib
import logging
import sys
from typing import Any

from ray import tune
from ray.tune import CLIReporter, PlacementGroupFactory

from raymtl.cluster import environment, session, side_by_side
from raymtl.config import LaunchSection, parse
from raymtl.errors import RankFailed
from raymtl.models import registry
from raymtl.progress import Show
from raymtl.storage import absolute
from raymtl_tuning import results
from raymtl_tuning.checks import checked
from raymtl_tuning.config import TuneConfig
from raymtl_tuning.records import RAY, Record, StudyFolder
from raymtl_tuning.search import ROWS, VALUE, Search, scheduler, search
from raymtl_tuning.shared import SharedLog, share
from raymtl_tuning.trial import Task, train_trial
from raymtl_tuning.watch import Budget, Recorder

TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the reporter that takes our columns
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # run folders hold the curves
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the study at once; it can be gone on with
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
REPORT_EVERY_S = 30
WORKER_TRIAL_CPUS = 0.01
"""Logical CPUs of a trial that waits for its worker group, which holds its own."""


def conduct(
    config: TuneConfig, address: str | None = None, resume: bool = False, show: Show = print
) -> results.Found:
    """Runs a tuning study to its end, or the part of it that is still to do.

    Args:
        address: Ray cluster to join; null starts a local one unless RAY_ADDRESS is set.
        resume: go on with the study that is there, instead of refusing it.
        show: takes lines for a person.

    Raises:
        InputError: before any trial, where config, space, log or folder do not do.
        RankFailed: no trial reached a value.
    """
    made, jobs = checked(config)
    folder = StudyFolder.of(made)
    folder.begin(made, resume)
    records = folder.records()
    found = search(made, records, folder.begun())
    if found.count:
        base = jobs[-1].config.launch
        launch = _launch(made, base, address)
        with session(launch, dashboard=True):
            logs = share(jobs, show) if made.share_log and made.num_workers == 1 else []
            together = side_by_side(made.parallel, made.cpus_per_trial * made.num_workers, address)
            show(f"{found.count} trials to make, {together} side by side, into {folder.url}")
            _fit(made, found, logs, together, show)
    records = folder.records()
    if all(record.value is None for record in records):
        raise RankFailed(_none(records))
    return results.write(made, folder, records, jobs[-1].schema)


def _launch(config: TuneConfig, base: LaunchSection, address: str | None) -> LaunchSection:
    """The local Ray (or the part of a cluster) that all trials side by side need."""
    num_workers = config.num_workers * (config.parallel or 1)
    cpus = max(float(config.cpus_per_trial), base.cpus_per_worker)
    update = {"address": address, "num_workers": num_workers, "cpus_per_worker": cpus}
    return parse(LaunchSection, base.model_dump() | update, "base.launch")


def _fit(
    config: TuneConfig, found: Search, logs: list[SharedLog], together: int, show: Show
) -> None:
    """Lets Ray Tune make the trials."""
    folder = StudyFolder.of(config)
    budget = Budget(config.budget, folder.records())
    recorder = Recorder(config, folder, found, budget, show)
    task = Task(config.model_dump(mode="json"), registry.registered(), logs, absolute("."))
    trainable = tune.with_parameters(train_trial, task=task)
    tuner = tune.Tuner(
        tune.with_resources(trainable, _resources(config)),
        param_space=found.param_space,
        tune_config=tune.TuneConfig(
            search_alg=found.searcher,
            scheduler=scheduler(config.scheduler, "max" if config.objective.maximised else "min"),
            num_samples=found.count if found.searcher else 1,
            max_concurrent_trials=together,
            # A worker group ends with the process that started it.
            reuse_actors=config.num_workers == 1,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=(folder.folder / RAY).url,
            stop=budget,
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=0, fail_fast=False),
            progress_reporter=_reporter(config),
            verbose=1,
        ),
    )
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # a failed trial's traceback; its record has the reason
    try:
        with environment(TUNE_ENVIRONMENT), contextlib.redirect_stdout(sys.stderr):
            tuner.fit()
    finally:
        logger.setLevel(level)
    recorder.drop_losers()


def _resources(config: TuneConfig) -> PlacementGroupFactory:
    if config.num_workers > 1:
        return PlacementGroupFactory([{"CPU": WORKER_TRIAL_CPUS}])
    gpu = {"GPU": 1.0} if config.uses_gpu else {}
    return PlacementGroupFactory([{"CPU": float(config.cpus_per_trial)} | gpu])


def _name(trial: Any) -> str:
    given = trial.config.get("trial", trial.config)
    return f"{given['number']:04d}"


def _reporter(config: TuneConfig) -> CLIReporter:
    metric = f"{config.objective.name} {config.objective.metric}"
    return CLIReporter(
        metric_columns={VALUE: metric, ROWS: "rows", "time_total_s": "seconds"},
        parameter_columns=["number"],
        max_report_frequency=REPORT_EVERY_S,
        print_intermediate_tables=True,
    )


def _none(records: list[Record]) -> str:
    reasons = [f"trial {r.number}: {r.reason or r.status}" for r in records]
    return "\n".join(["no trial of the study reached a value:", *reasons[:10]])
