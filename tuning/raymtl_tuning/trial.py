"""One trial: a point trained with each seed, its validations reported to Ray Tune."""

import math
import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from raymtl import alone
from raymtl.analysis.runs import Training, read_training
from raymtl.config import TrainConfig, parse
from raymtl.errors import InputError, NonFinite, one_line
from raymtl.run import Run
from raymtl.source import Read
from raymtl.storage import START_FOLDER
from raymtl.study.cell import Models, as_begun, begin, finished
from raymtl_tuning import objective
from raymtl_tuning.checks import runs_at
from raymtl_tuning.config import TuneConfig
from raymtl_tuning.records import StudyFolder
from raymtl_tuning.search import COST, ROWS, STEP, VALUE
from raymtl_tuning.shared import SharedLog, reader

VALID = "valid/"
STOP_TIMEOUT = ("TUNE_FUNCTION_THREAD_TIMEOUT_S", "30")
"""Seconds that a stopped trial has to leave its process to the next one; else that is replaced."""
NO_MEMORY = "can't allocate memory"
"""How torch says it, by a RuntimeError."""


@dataclass(frozen=True)
class Task:
    """What all trials of a study are given, besides their points."""

    config: dict[str, Any]
    """Of the study, `objective.against` resolved."""
    models: Models
    """What `register_model` made known to the driver."""
    logs: Sequence[SharedLog]
    start: str
    """The folder at which relative paths of the study begin; Ray Tune gives trials others."""


def train_trial(config: dict[str, Any], task: Task) -> None:
    """Ray Tune's function trainable.

    Args:
        config: `number` and `point`, or both under `trial`.

    Raises:
        Exception: as the training raised it, after its kind and text were noted in the folder.
    """
    given = config.get("trial", config)
    os.environ[START_FOLDER] = task.start
    study = parse(TuneConfig, task.config, "the tuning study")
    folder, number = StudyFolder.of(study), given["number"]
    begin(study.cpus_per_trial, task.models)
    os.environ.setdefault(*STOP_TIMEOUT)
    folder.note_failure(number, None)
    try:
        with limited_memory(study.memory_per_trial_bytes):
            tune.report(_trained(study, number, given["point"], reader(task.logs)))
    except Exception as error:
        folder.note_failure(number, reason_of(error))
        raise


def reason_of(error: Exception) -> str:
    """The kind of a failure (refused, not finite, out of memory, raised), and its message."""
    text = str(error)
    if isinstance(error, InputError):
        return f"refused: {text}"
    if isinstance(error, NonFinite):
        return f"not finite: {text}"
    if isinstance(error, MemoryError) or NO_MEMORY in text:
        return f"out of memory: {one_line(error)}"
    return f"raised: {type(error).__name__}: {one_line(error)}"


def _trained(study: TuneConfig, number: int, point: dict[str, Any], read: Read) -> dict[str, Any]:
    """Trains all seeds, the first one watched; what the trial reports last."""
    states, trainings = [], []
    for seed in study.seeds:
        *before, run = runs_at(study, number, point, seed)
        for pretraining in before:
            _train(pretraining, read, None)
        watch = Watch(study, run) if seed == study.seed else None
        states.append(_train(run, read, watch)["state"])
        trainings.append(read_training(Run.of(run).url))
    values = [_finite(objective.value(study.objective, s["best_metrics"]), s) for s in states]
    return {
        VALUE: statistics.fmean(values),
        "values": values,
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        COST: _cost(study, trainings),
        STEP: sum(state["step"] for state in states),
        ROWS: sum(state["rows"] for state in states),
        "metrics": _mean([state["best_metrics"] for state in states]),
        "whole": True,
    }


def _train(run: TrainConfig, read: Read, watch: "Watch | None") -> dict[str, Any]:
    """Trains a run, goes on with one that an earlier process left, or takes one that is finished.

    Returns:
        What its result.json holds.
    """
    there = Run.of(run).exists()
    if there and (result := finished(run)) is not None:
        return result
    run = as_begun(run)
    if watch is not None and there:
        for line in read_training(Run.of(run).url).lines:
            watch.line(line, tell=False)
    if run.launch.num_workers == 1:
        return alone.train(run, there, watch.line if watch else None, read)
    from raymtl import launch

    callbacks = [RankReports(watch)] if watch else []
    return launch.train(run, there, show=lambda line: None, callbacks=callbacks)


class Watch:
    """Reports the objective of a run's best validation so far, at each of its validations.

    The best is that of `validation.metric`, whose checkpoint the run keeps.
    """

    def __init__(self, study: TuneConfig, run: TrainConfig):
        self._objective = study.objective
        self._section = run.validation
        self._batch_size = run.train.global_batch_size
        self._best: float | None = None
        self._value: float | None = None

    def line(self, values: dict[str, Any], tell: bool = True) -> None:
        """Takes a line of metrics.jsonl."""
        metrics = {k.removeprefix(VALID): v for k, v in values.items() if k.startswith(VALID)}
        if metrics:
            report = self.seen(metrics, values["step"], values["rows"])
            if tell:
                tune.report(report)

    def seen(self, metrics: dict[str, Any], step: int, rows: int | None = None) -> dict[str, Any]:
        """What to report of a validation.

        Raises:
            NonFinite: the objective does not exist there.
        """
        metric = metrics.get(self._section.metric)
        sign = 1 if self._section.higher_is_better else -1
        if self._best is None or (metric is not None and sign * (metric - self._best) > 0):
            self._value = _finite(objective.value(self._objective, metrics), {"step": step})
            self._best = metric
        rows = step * self._batch_size if rows is None else rows
        # Ray Tune wants every objective in every report; the cost is known at the end.
        return {VALUE: self._value, COST: None, STEP: step, ROWS: rows, "whole": False}


class RankReports(TuneReportCallback):
    """Reports the validations of a worker group; Ray Train calls it beside the group."""

    def __init__(self, watch: Watch):
        super().__init__()
        self._watch = watch

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        values = dict(metrics[0])
        step = values.pop("step")
        if values:
            super().after_report(run_context, [self._watch.seen(values, step)], None)


def _finite(value: float | None, state: dict[str, Any]) -> float:
    if value is None or not math.isfinite(value):
        raise NonFinite(
            f"the objective is no finite number at step {state['step']}\n"
            f"  got:    {value}\n"
            f"  wanted: every task's metric, of rows of both classes\n"
            f"  do:     look at the validation log, or choose another objective.metric"
        )
    return value


def _cost(study: TuneConfig, trainings: list[Training]) -> float | None:
    match study.objective.cost:
        case "parameters":
            sizes = [(t.num_dense or 0) + (t.num_table or 0) for t in trainings]
            return float(sizes[0]) or None
        case "rows_per_s":
            known = [t.rows_per_s for t in trainings if t.rows_per_s is not None]
            return statistics.fmean(known) if known else None
    return None


def _mean(metrics: list[dict[str, Any]]) -> dict[str, float | int | None]:
    """Mean over seeds of the metrics that all of them have; of one seed they are as they are."""
    known = {k for k, v in metrics[0].items() if all(m.get(k) is not None for m in metrics)}
    if len(metrics) == 1:
        return {key: metrics[0][key] for key in sorted(known)}
    return {key: statistics.fmean(m[key] for m in metrics) for key in sorted(known)}


@contextmanager
def limited_memory(size_bytes: int | None) -> Iterator[None]:
    """Lets this process take so much memory beyond what it has, until the block ends.

    By Linux's RLIMIT_DATA, of private writable memory; the object store's pages are not among it.

    Args:
        size_bytes: null sets no limit.
    """
    if size_bytes is None:
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    has_bytes = int(status["VmData"].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (has_bytes + size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
